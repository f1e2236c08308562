"""The launches of a run, noted in its output folder: who started what, and how it ended.

<output>/launches/<id>/launch.json     written when it starts
                       outcome.json    written when it ends; the last try's, if there were more
                       log.txt         what it printed, where nobody looked on
                       exits/          how each rank ended
                       stop            a user asked it to end: nobody starts it again
                       job.sh          what SLURM runs
                       progress.json   what tells SLURM's restarts from a run that goes nowhere
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from gradacc_dist.errors import ConfigError, DiskError

LAUNCHES = "launches"
ATTEMPT = "GRADACC_ATTEMPT"
"""Variable: which try of the launch this is, where a scheduler counts them; equal on all nodes."""
KIND = "GRADACC_LAUNCHED_BY"
"""Variable: `local`, `slurm` or `kubernetes`. The first two note the launch themselves."""
Kind = Literal["foreground", "local", "slurm", "kubernetes"]


@dataclass(frozen=True)
class Launch:
    """`pid` and `pid_began` (clock ticks since boot) of a process on `host`, or a SLURM job."""

    id: str
    kind: Kind
    host: str
    started: float
    """Seconds since the epoch."""
    command: tuple[str, ...]
    """The words after `gradacc`."""
    pid: int | None = None
    pid_began: int | None = None
    job_id: str | None = None

    @classmethod
    def of_process(cls, pid: int, launch_id: str, kind: Kind, command: tuple[str, ...]) -> Self:
        """One that the process `pid` of this host has just begun."""
        here, now = socket.gethostname(), time.time()
        return cls(launch_id, kind, here, now, command, pid=pid, pid_began=start_ticks(pid))

    @property
    def is_here(self) -> bool:
        """Whether it was started from this host."""
        return self.host == socket.gethostname()


@dataclass(frozen=True)
class Outcome:
    """How a launch ended."""

    exit_code: int
    cause: str
    ended: float
    """Seconds since the epoch."""
    restarts: int = 0
    """How often a scheduler started it again before."""


@dataclass(frozen=True)
class LaunchFolder:
    """Where one launch notes what it does."""

    path: Path

    @classmethod
    def of(cls, output: Path, launch_id: str) -> Self:
        """In the output folder of its run."""
        return cls(output / LAUNCHES / launch_id)

    @property
    def output(self) -> Path:
        """The output folder of the run."""
        return self.path.parent.parent

    @property
    def log(self) -> Path:
        """What the launch printed."""
        return self.path / "log.txt"

    @property
    def stop(self) -> Path:
        """There once a user asked the launch to end."""
        return self.path / "stop"

    @property
    def exits(self) -> Path:
        """Folder of folders: how the ranks of each try ended."""
        return self.path / "exits"

    def ask_to_stop(self) -> None:
        """Note that a user wants the end of it. Raises DiskError."""
        with DiskError.naming(self.stop):
            self.stop.touch()

    def write_launch(self, launch: Launch) -> None:
        """Raises DiskError."""
        write_note(self.path / "launch.json", asdict(launch))

    def read_launch(self) -> Launch | None:
        """None where there is none that can be read."""
        return read_note(self.path / "launch.json", _LAUNCH)

    def write_outcome(self, outcome: Outcome) -> None:
        """Raises DiskError."""
        write_note(self.path / "outcome.json", asdict(outcome))

    def read_outcome(self) -> Outcome | None:
        """None while it runs, or where its end could not be noted."""
        return read_note(self.path / "outcome.json", _OUTCOME)


_LAUNCH, _OUTCOME = TypeAdapter(Launch), TypeAdapter(Outcome)
_Noted = TypeVar("_Noted")


def new_id() -> str:
    """A name for a launch; the later one sorts behind."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def newest(output: Path) -> tuple[LaunchFolder, Launch]:
    """The last launch of the run in `output`. Raises ConfigError where there is none."""
    # Not by name: Kubernetes has names of its own.
    folders = [LaunchFolder(path.parent) for path in (output / LAUNCHES).glob("*/launch.json")]
    noted = [(folder, launch) for folder in folders if (launch := folder.read_launch())]
    if noted:
        return max(noted, key=lambda each: (each[1].started, each[1].id))
    raise ConfigError(
        f"{output} has no launch of gradacc in it; name the run.output_dir of a run that "
        "`gradacc train` or `gradacc submit` started"
    )


def start_ticks(pid: int) -> int | None:
    """When a process of this host began, in clock ticks since boot; None where there is none.

    With it, a process that has got an old one's number is not taken for it.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = text.rpartition(")")[2].split()
    return None if after_name[0] == "Z" else int(after_name[19])


def is_alive(launch: Launch) -> bool:
    """Whether the launch's process runs, on this host."""
    ticks = start_ticks(launch.pid) if launch.is_here and launch.pid is not None else None
    return ticks is not None and ticks == launch.pid_began


def write_note(path: Path, content: dict[str, object]) -> None:
    """Whole or not at all, as JSON. Raises DiskError."""
    with DiskError.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)


def read_note(path: Path, form: TypeAdapter[_Noted]) -> _Noted | None:
    """None where there is none that can be read."""
    try:
        return form.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
