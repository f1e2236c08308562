"""What the kernel lets a process of this node have: processors, memory, files."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OF_THIS_PROCESS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Limits:
    """None: no limit. `cores`: that a process may use; `cgroup_cores`: the time of so many."""

    cores: int
    cgroup_cores: float | None
    memory_bytes: int
    cgroup_memory_bytes: int | None
    open_files: int | None
    locked_bytes: int | None

    @property
    def usable_cores(self) -> float:
        """Cores' worth of time that processes of this group get."""
        return min(self.cores, self.cgroup_cores or self.cores)


def limits() -> Limits:
    """Those of this process, which its children inherit."""
    return Limits(
        cores=len(os.sched_getaffinity(0)),
        cgroup_cores=min(_quotas(), default=None),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cgroup_memory_bytes=min(_memory_limits(), default=None),
        open_files=_soft(resource.RLIMIT_NOFILE),
        locked_bytes=_soft(resource.RLIMIT_MEMLOCK),
    )


def _soft(which: int) -> int | None:
    soft, _hard = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _quotas() -> Iterator[float]:
    """Of the process's group and of each group around it: the least of them holds."""
    for folder in _groups(""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)
    for folder in _groups("cpu"):
        quota, period = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal():  # -1: none
            yield int(quota) / int(period)


def _memory_limits() -> Iterator[int]:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = {"": "memory.max", "memory": "memory.limit_in_bytes"}
    for controller, name in names.items():
        for folder in _groups(controller):
            text = _text(folder / name)
            if text.isdecimal() and int(text) < physical:
                yield int(text)


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the process's group and those around it; of version 2 where `controller` is ''.

    Within a container its own group may be all there is, in place of the root.
    """
    for line in _text(OF_THIS_PROCESS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            root = CGROUPS / controller
            inner = root / path.lstrip("/")
            yield from (
                each for each in (inner, *inner.parents) if each == root or root in each.parents
            )


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
