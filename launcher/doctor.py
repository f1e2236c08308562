"""`gradacc doctor`: what would stop or slow a run on these nodes, without starting it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from gradacc_dist.errors import ConfigError
from gradacc_dist.exits import LAUNCH_ID
from launcher.checked import prepared
from launcher.findings import Finding, Reports, findings
from launcher.launches import LAUNCHES, new_id
from launcher.machine import Machine
from launcher.place import Place, place_of
from launcher.plan import plan
from launcher.ranks import supervised
from launcher.report import Disk, Report, report
from launcher.request import Request
from launcher.rollmessages import Meeting
from launcher.running import meet, say

BANDWIDTH = "gradacc_dist.bandwidth"
GIB = 2**30


def examine(request: Request, environ: Mapping[str, str]) -> int:
    """Print what this node is and, with several, meet them; then measure all ranks together.

    Returns the exit code: 0 also with warnings. Raises ConfigError where there are errors, and as
    `roll_call` does.
    """
    if request.nodes.is_elastic:
        raise ConfigError(f"--nodes {request.nodes}: the doctor sees to nodes that are all there")
    place, here = place_of(environ, request.nodes), prepared(request, environ)
    machine, layout, resolved = here.machine, here.layout, here.resolved
    if request.nodes.maximum > 1:
        with folder_of_launches(resolved.config.run.folder, is_first=place.is_first):
            meeting = meet(request, place, layout, resolved, environ)
    else:
        mine = report(resolved, layout, environ)
        nodes = Reports({0: mine}, {0: mine.host}, {0: 0.0})
        meeting = Meeting(tuple(findings(nodes)), nodes)
    if place.is_first:
        print(shown(meeting), flush=True)
    meeting.refuse_errors()
    if layout.total(request.nodes.maximum) == 1:
        print("bandwidth: one rank; there is no link to measure")
        return 0
    return _measure_bandwidth(request, machine, place, environ)


def lines_of(report: Report) -> dict[str, str]:
    """What a report says, by item, for people."""
    limits = report.limits
    memory = min(limits.memory_bytes, limits.cgroup_memory_bytes or limits.memory_bytes)
    files = "unlimited" if limits.open_files is None else f"{limits.open_files:,}"
    locked = "unlimited" if limits.locked_bytes is None else f"{limits.locked_bytes:,} bytes"
    lines = {
        "hostname": f"{report.host} -> {', '.join(report.addresses) or 'nowhere'}",
        "versions": ", ".join(f"{name} {each}" for name, each in report.versions.items()),
        "code": report.code_sha256[:12],
        "configuration": report.config_sha256[:12],
        "ranks": f"{report.ranks} on {report.device.upper()}",
        "cores": f"{limits.usable_cores:g}",
        "memory": f"{memory / GIB:,.1f} GiB",
        "output": _room(report.output),
        "cache": _room(report.cache),
        "shared memory": _room(report.shared_memory),
        "limits": f"{files} open files, {locked} locked memory",
        "GPUs": report.gpu_fault or ("" if report.gpus else "none"),
    }
    for gpu in report.gpus:
        ecc = gpu.uncorrected_errors
        errors = "not counted" if ecc is None else ecc
        used = f"{gpu.used_mib:,} of {gpu.total_mib:,} MiB used"
        lines[f"GPU {gpu.index}"] = f"{gpu.name}: {used}, ECC errors {errors}"
    return {item: text for item, text in lines.items() if text}


@contextmanager
def folder_of_launches(output: Path, *, is_first: bool) -> Iterator[None]:
    """There while nodes meet, as when they train: by it they see whether they share a disk."""
    folder = output.absolute() / LAUNCHES
    made = [each for each in (folder, *folder.parents) if is_first and not each.exists()]
    with suppress(OSError):
        if made:
            folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for each in made:
                each.rmdir()


def _room(disk: Disk) -> str:
    free = "unknown" if disk.free_bytes is None else f"{disk.free_bytes / GIB:,.1f} GiB"
    return f"{disk.folder}: {free} free"


def shown(meeting: Meeting) -> str:
    """A table for each node."""
    parts = []
    for node, each in meeting.nodes.reports.items():
        name, apart = meeting.nodes.names[node], meeting.nodes.clock_seconds[node]
        clock = f", clock {apart:+.2f} s" if len(meeting.nodes.reports) > 1 else ""
        found = [finding for finding in meeting.findings if finding.node == name]
        parts.append(f"{name}{clock}\n{table(lines_of(each), found)}")
    return "\n".join(parts)


def table(lines: Mapping[str, str], found: Sequence[Finding]) -> str:
    """A row an item, with the worst level found; what was found stands below its item."""
    items = dict.fromkeys((*lines, *(finding.item for finding in found)))
    rows = []
    for item in items:
        of_item = [finding for finding in found if finding.item == item]
        levels = {finding.level for finding in of_item}
        level = next((each for each in ("error", "warning") if each in levels), "ok")
        rows.append(f"  {level:<8} {item:<14} {lines.get(item, '')}".rstrip())
        rows += [f"{'':11}{'':15}{finding.text}; {finding.remedy}" for finding in of_item]
    return "\n".join(rows)


def _measure_bandwidth(
    request: Request, machine: Machine, place: Place, environ: Mapping[str, str]
) -> int:
    with tempfile.TemporaryDirectory(prefix="gradacc-doctor-") as folder:
        asked = replace(request, module=BANDWIDTH)
        launch_id = environ.get(LAUNCH_ID) or new_id()
        command = plan(asked, machine, place, launch_id, Path(folder))
        result = supervised(command, Path(folder))
    if result.cause:
        say(f"{result.cause} [exit code {result.exit_code}]")
    if result.exit_code == 1 and request.nodes.maximum > 1:
        say(
            f"the nodes met at port {place.port}, but their ranks did not meet, or lost each other:"
            " gloo and NCCL connect on ports that the kernel chooses; let the nodes reach each "
            "other on all ports"
        )
    return result.exit_code
