"""What this machine offers to ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gradacc_dist.errors import ConfigError
from launcher import driver
from launcher.limits import limits


@dataclass(frozen=True)
class Machine:
    """A node. `num_gpus`: those that a process started here may see; `num_cores` likewise.

    `threads`: OMP_NUM_THREADS, where a user has set it.
    """

    host: str
    num_gpus: int
    num_cores: int
    threads: str | None = None


def this_machine(environ: Mapping[str, str] = os.environ, *, cpu: bool = False) -> Machine:
    """Look at this node, without torch: the driver is asked, and CUDA_VISIBLE_DEVICES narrows.

    With `cpu` no GPU is wanted and no driver asked. Raises ConfigError where it does not answer.
    """
    return Machine(
        socket.gethostname(),
        num_gpus=0 if cpu else _num_gpus(environ),
        num_cores=max(1, int(limits().usable_cores)),
        threads=environ.get("OMP_NUM_THREADS") or None,
    )


def _num_gpus(environ: Mapping[str, str]) -> int:
    present, named = _present_gpus(), driver.visible(environ)
    return present if named is None else min(len(named), present)


def _present_gpus() -> int:
    try:
        listed = driver.ask("-L")
    except driver.NoAnswerError as error:
        raise ConfigError(
            f"{socket.gethostname()}: {error}, so its GPUs cannot be counted; see `dmesg` there "
            "and leave the node out if it does not recover, or start CPU ranks with --cpu"
        ) from error
    if listed is not None and listed.returncode == 0:
        return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdecimal()])
