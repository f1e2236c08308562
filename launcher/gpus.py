"""The health of this node's GPUs, as the driver's `nvidia-smi` tells it."""

from __future__ import annotations

import csv
import shutil
import subprocess
from dataclasses import dataclass

LIMIT_SECONDS = 30
"""How long a driver may take to answer; one that hangs takes for ever."""

COLUMNS = (
    "index",
    "name",
    "memory.total",
    "memory.used",
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.hw_thermal_slowdown",
    "clocks_throttle_reasons.hw_power_brake_slowdown",
)


@dataclass(frozen=True)
class Gpu:
    """One GPU. Memory in MiB. `uncorrected_errors`: ECC's, since the driver started; None where
    the GPU does not count them. `slowed_by`: what keeps its clock down."""

    index: int
    name: str
    total_mib: int
    used_mib: int
    uncorrected_errors: int | None
    slowed_by: tuple[str, ...]


def gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs, and what is wrong with the driver: None where it answers, or where there is none.

    All that the node has: which of them a process may see is not asked.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), None
    query = [program, f"--query-gpu={','.join(COLUMNS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return (), f"nvidia-smi has not answered for {LIMIT_SECONDS} s"
    except OSError as error:
        return (), f"{program} cannot be started: {error.strerror}"
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return (), f"nvidia-smi ended with {done.returncode}: {said[0] if said else 'no message'}"
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return tuple(_gpu(row) for row in rows if len(row) == len(COLUMNS)), None


def _gpu(row: list[str]) -> Gpu:
    index, name, total, used, errors, hot, braked = row
    reasons = {"heat": hot, "the power supply": braked}
    return Gpu(
        index=_number(index) or 0,
        name=name,
        total_mib=_number(total) or 0,
        used_mib=_number(used) or 0,
        uncorrected_errors=_number(errors),
        slowed_by=tuple(reason for reason, answer in reasons.items() if answer == "Active"),
    )


def _number(text: str) -> int | None:
    """None for what a GPU does not tell: `[N/A]`, `[Not Supported]`."""
    return int(text) if text.isdecimal() else None
