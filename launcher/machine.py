"""What this machine offers to ranks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """A node. `num_gpus`: those that a process started here may see; `num_cores` likewise."""

    host: str
    num_gpus: int
    num_cores: int


def this_machine(environ: Mapping[str, str] = os.environ) -> Machine:
    """Look at this node, without torch: the driver is asked, and CUDA_VISIBLE_DEVICES narrows."""
    return Machine(socket.gethostname(), _num_gpus(environ), len(os.sched_getaffinity(0)))


def _num_gpus(environ: Mapping[str, str]) -> int:
    present = _present_gpus()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not present:
        return present
    num_named = 0
    for name in visible.split(","):
        # CUDA sees none from the first number on that is no GPU.
        if not name.strip() or name.strip().startswith("-"):
            break
        num_named += 1
    return min(num_named, present)


def _present_gpus() -> int:
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
        if listed.returncode == 0:
            return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdecimal()])
