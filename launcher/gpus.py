"""The health of this node's GPUs, as the driver's `nvidia-smi` tells it."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass

from launcher import driver

COLUMNS = (
    "index",
    "uuid",
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


def gpus(environ: Mapping[str, str] = os.environ) -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs, and what is wrong with the driver: None where it answers, or where there is none.

    Those that a process started here may see: what ails the others does not touch a run.
    """
    try:
        done = driver.ask(f"--query-gpu={','.join(COLUMNS)}", "--format=csv,noheader,nounits")
    except driver.NoAnswerError as error:
        return (), str(error)
    if done is None:
        return (), None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return (), f"nvidia-smi ended with {done.returncode}: {said[0] if said else 'no message'}"
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    whole = [row for row in rows if len(row) == len(COLUMNS)]
    return tuple(_gpu(row) for row in whole if _is_visible(row, driver.visible(environ))), None


def _is_visible(row: list[str], names: tuple[str, ...] | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names the GPU: by number, the beginning of its UUID, or a part
    of it. Whose a part is, only older drivers' names say: others leave every GPU under suspicion.
    """
    index, uuid, *_ = row
    if names is None:
        return True
    return any(
        name == index
        or uuid.startswith(name)
        or (name.startswith("MIG-") and (uuid in name or "GPU-" not in name))
        for name in names
    )


def _gpu(row: list[str]) -> Gpu:
    index, _uuid, name, total, used, errors, hot, braked = row
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
