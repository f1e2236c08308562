"""What is wrong with nodes, found in what they say of themselves: pure functions.

An error would end the run, or falsify it, later and with fewer words; a warning may cost time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from launcher.report import GLOO_INTERFACE, Report

MAX_CLOCK_SECONDS = 5.0
MIN_DISK_BYTES = 10**9
SHARED_BYTES_PER_RANK = 64 * 2**20
# Each rank holds a connection or two to every other in each of a few groups, and files of data.
FILES_PER_RANK, OTHER_FILES = 4, 256
# What an idle driver keeps, and a desktop.
IDLE_GPU_MIB = 1024

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something wrong. `node`: its name; `item`: the line of its report that it belongs to."""

    level: Level
    node: str
    item: str
    text: str
    remedy: str

    def __str__(self) -> str:
        """In a line."""
        return f"{self.level}: {self.node}: {self.text}; {self.remedy}"


@dataclass(frozen=True)
class Unreached:
    """`address` of node 0, at a port that the kernel chose, and why it was not reached there."""

    address: str
    why: str


@dataclass(frozen=True)
class Reports:
    """The reports of all nodes, by node. `clock_seconds`: how far a clock is ahead of node 0's.
    `unreached`: of those that did not reach a second port of node 0. `blind`: those that do not
    see in the output folder what node 0 has there."""

    reports: Mapping[int, Report]
    names: Mapping[int, str]
    clock_seconds: Mapping[int, float]
    unreached: Mapping[int, Unreached] = field(default_factory=dict)
    blind: tuple[int, ...] = ()

    @property
    def num_ranks(self) -> int:
        """Of the run."""
        return sum(report.ranks for report in self.reports.values())


def findings(nodes: Reports) -> list[Finding]:
    """All that is wrong, errors first, else in the order of nodes."""
    found = [*_differences(nodes), *_clocks(nodes), *_ports(nodes), *_shared_output(nodes)]
    for node, report in nodes.reports.items():
        found += _of_node(nodes.names[node], report, nodes)
    order = {name: place for place, name in enumerate(nodes.names.values())}
    return sorted(found, key=lambda each: (each.level != "error", order[each.node]))


def _of_node(name: str, report: Report, nodes: Reports) -> Iterator[Finding]:
    yield from _hostname(name, report, nodes)
    yield from _disks(name, report)
    yield from _limits(name, report, nodes.num_ranks)
    yield from _gpus(name, report)


def _differences(nodes: Reports) -> Iterator[Finding]:
    """What must be the same everywhere."""
    reports = nodes.reports
    remedy = "install the same versions on every node"
    for package in dict.fromkeys(each for report in reports.values() for each in report.versions):
        values = {node: each.versions.get(package, "unknown") for node, each in reports.items()}
        yield from _odd(nodes, "versions", package, values, remedy)
    values = {node: each.code_sha256[:12] for node, each in reports.items()}
    remedy = "install the same gradacc_dist on every node"
    yield from _odd(nodes, "code", "code of gradacc_dist", values, remedy)
    values = {node: f"{each.ranks} on {each.device.upper()}" for node, each in reports.items()}
    remedy = "give every node the same --ranks, and --cpu on all or none"
    yield from _odd(nodes, "ranks", "number of ranks", values, remedy)
    if len({report.config_sha256 for report in reports.values()}) > 1:
        remedy = "give every node the same configuration file and flags"
        for path in dict.fromkeys(each for report in reports.values() for each in report.settings):
            values = {node: each.settings.get(path, "not set") for node, each in reports.items()}
            yield from _odd(nodes, "configuration", path, values, remedy)


def _odd(
    nodes: Reports, item: str, what: str, values: Mapping[int, str], remedy: str
) -> Iterator[Finding]:
    """Nodes whose value is not that of most; where as many say one thing as another, node 0's."""
    counts = Counter(values.values())
    if len(counts) == 1:
        return
    most = max(counts.values())
    common = next(each for _, each in sorted(values.items()) if counts[each] == most)
    holders = [nodes.names[node] for node in sorted(values) if values[node] == common]
    where = holders[0] if len(holders) == 1 else f"{len(holders)} others ({holders[0]}, ...)"
    for node, each in values.items():
        if each != common:
            text = f"{what}: {each} here, {common} on {where}"
            yield Finding("error", nodes.names[node], item, text, remedy)


def _clocks(nodes: Reports) -> Iterator[Finding]:
    """Against the clock in the middle, so that one that is wrong is named, be it node 0's. Of two
    in the middle, the one that is nearer to node 0's."""
    ordered = sorted(nodes.clock_seconds.values())
    middle = min(ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1], key=abs)
    for node, seconds in nodes.clock_seconds.items():
        apart = seconds - middle
        if abs(apart) > MAX_CLOCK_SECONDS:
            side = "ahead of" if apart > 0 else "behind"
            text = f"its clock is {abs(apart):.1f} s {side} the others'"
            remedy = "let NTP set it (chrony, systemd-timesyncd); logs tell a false order"
            yield Finding("warning", nodes.names[node], "clock", text, remedy)


def _ports(nodes: Reports) -> Iterator[Finding]:
    """An error where gloo would go the same way; on another interface all may be open."""
    for node, fault in nodes.unreached.items():
        first = nodes.reports[0]
        certain = first.gloo_address == fault.address and not first.gloo_interface
        text = (
            f"does not reach {nodes.names[0]} ({fault.address}) at a port that the kernel chose: "
            f"{fault.why}"
        )
        remedy = (
            "let the nodes reach each other at all ports, not MASTER_PORT alone: gloo and NCCL "
            "listen where the kernel says"
        )
        yield Finding("error" if certain else "warning", nodes.names[node], "ports", text, remedy)


def _shared_output(nodes: Reports) -> Iterator[Finding]:
    for node in nodes.blind:
        text = (
            f"run.output_dir, {nodes.reports[node].output.folder}: what {nodes.names[0]} wrote to "
            f"{nodes.reports[0].output.folder} is not to be seen there"
        )
        remedy = "give all nodes one shared folder (NFS, Lustre), by --run.output_dir"
        yield Finding("error", nodes.names[node], "output", text, remedy)


def _hostname(name: str, report: Report, nodes: Reports) -> Iterator[Finding]:
    hosts = {each.host for each in nodes.reports.values()}
    if report.gloo_interface or len(hosts) == 1:
        return
    address = report.gloo_address
    if address is not None and not is_loopback(address):
        return
    if not report.addresses:
        leads = "does not resolve there"
    elif address is None:
        leads = f"leads to {', '.join(report.addresses)}, which is none of its own addresses"
    else:
        leads = f"leads to {address}, by which no other host reaches it"
    yield Finding(
        "error",
        name,
        "hostname",
        f"its own name, {report.host}, {leads}",
        f"let /etc/hosts or DNS of {report.host} say its address in the network of the nodes, or "
        f"set {GLOO_INTERFACE}=eth0 (its interface) there",
    )


def is_loopback(address: str) -> bool:
    """Whether an address leads no further than its own host."""
    return address.startswith("127.") or address.partition("%")[0] == "::1"


def _disks(name: str, report: Report) -> Iterator[Finding]:
    free, needed = report.output.free_bytes, report.checkpoint_bytes
    where = f"{report.output.folder} (disk {report.output.mounted_at})"
    if free is None:
        text = f"run.output_dir, {report.output.folder}: its free space cannot be told"
        yield Finding("warning", name, "output", text, "see whether its disk is mounted")
    elif free < (MIN_DISK_BYTES if needed is None else needed):
        for_what = f"at least {MIN_DISK_BYTES:,}" if needed is None else f"{needed:,} a checkpoint"
        text = f"run.output_dir, {where}: {free:,} bytes free, needs {for_what}"
        remedy = "free some space there, or set --run.output_dir"
        yield Finding("error", name, "output", text, remedy)
    cache = report.cache
    if cache.free_bytes is not None and cache.free_bytes < MIN_DISK_BYTES:
        where = f"{cache.folder} (disk {cache.mounted_at})"
        text = f"data.cache_dir, {where}: {cache.free_bytes:,} bytes free"
        remedy = "free some space there, or set --data.cache_dir"
        yield Finding("warning", name, "cache", text, remedy)
    shared, wanted = report.shared_memory.free_bytes, SHARED_BYTES_PER_RANK * report.ranks
    if shared is not None and shared < wanted:
        level: Level = "error" if report.device == "gpu" and report.ranks > 1 else "warning"
        text = f"/dev/shm: {shared:,} bytes free for {report.ranks} rank(s), needs {wanted:,}"
        remedy = "give the container more: docker run --shm-size=8g; an emptyDir of medium Memory"
        yield Finding(level, name, "shared memory", text, remedy)


def _limits(name: str, report: Report, num_ranks: int) -> Iterator[Finding]:
    limits = report.limits
    files = FILES_PER_RANK * num_ranks + OTHER_FILES
    if limits.open_files is not None and limits.open_files < files:
        text = f"{limits.open_files:,} open files allowed, {num_ranks} ranks need {files:,}"
        yield Finding("error", name, "limits", text, f"raise the limit: ulimit -n {2 * files}")
    if report.has_infiniband and limits.locked_bytes is not None:
        text = f"InfiniBand, but only {limits.locked_bytes:,} bytes of locked memory allowed"
        remedy = "raise the limit (ulimit -l unlimited), or NCCL falls back or fails"
        yield Finding("warning", name, "limits", text, remedy)
    if limits.usable_cores < report.ranks:
        text = f"{report.ranks} ranks share {limits.usable_cores:g} core(s)"
        yield Finding("warning", name, "cores", text, "ask for fewer --ranks, or more cores")


def _gpus(name: str, report: Report) -> Iterator[Finding]:
    if report.gpu_fault is not None:
        level: Level = "error" if report.device == "gpu" else "warning"
        remedy = "see `nvidia-smi` and `dmesg` there; drain the node if it does not recover"
        yield Finding(level, name, "GPUs", report.gpu_fault, remedy)
    if report.device != "gpu":
        return
    for gpu in report.gpus:
        who = f"GPU {gpu.index} ({gpu.name})"
        item = f"GPU {gpu.index}"
        if gpu.uncorrected_errors:
            text = f"{who}: {gpu.uncorrected_errors} uncorrected ECC error(s)"
            yield Finding("error", name, item, text, "reset or replace the GPU; leave the node out")
        if gpu.used_mib > IDLE_GPU_MIB:
            text = f"{who}: {gpu.used_mib:,} of {gpu.total_mib:,} MiB are in use by others"
            yield Finding("warning", name, item, text, "end what runs there: nvidia-smi names it")
        for reason in gpu.slowed_by:
            text = f"{who}: its clock is held down by {reason}"
            yield Finding("warning", name, item, text, "see to its cooling and power")
