"""How each rank of a launch began and ended, noted in files that a launcher reads.

Launchers of ranks say no more than an exit status, and not always that of the rank which failed
first. Where the variable GRADACC_EXITS names a folder, each process notes there that it began and
how it ended. One that began and did not end was killed. Imports no torch.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from gradacc_dist.errors import GradaccError

EXITS = "GRADACC_EXITS"
"""The variable that names the folder."""
LAUNCH_ID = "GRADACC_LAUNCH_ID"
"""The variable that names the launch, alike over all its starts: the folder is of one launch."""


@dataclass(frozen=True, kw_only=True)
class Exit:
    """One rank's process. `began` and `ended` are seconds since the epoch, by its host's clock."""

    rank: int
    ranks: int
    """Of the whole run, when this one began."""
    host: str
    pid: int
    began: float
    ended: float | None = None
    """None: it runs, or was killed."""
    exit_code: int | None = None
    error: str | None = None
    """Name of the error's class; None where it ended well."""
    message: str = ""
    is_ours: bool = False
    """A GradaccError, which names its remedy; anything else is told by its traceback."""
    is_echo: bool = False
    """The verdict of all ranks, or what another rank's error does to this one."""


_EXIT = TypeAdapter(Exit)


@contextmanager
def noted(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Around all that a rank does: notes its beginning and its end, if a launcher asked for it.

    Lets every error through. That a note cannot be written never stops a run.
    """
    folder = environ.get(EXITS)
    if not folder:
        yield
        return
    this = Exit(
        rank=int(environ.get("RANK", "0")),
        ranks=int(environ.get("WORLD_SIZE", "1")),
        host=socket.gethostname(),
        pid=os.getpid(),
        began=time.time(),
    )
    path = Path(folder) / f"{this.host}-{this.pid}.json"
    _write(path, this)
    try:
        yield
    except BaseException as error:
        _write(path, _failed(this, error))
        raise
    _write(path, replace(this, ended=time.time(), exit_code=0))


def read_exits(folder: Path) -> list[Exit]:
    """All that was noted in `folder`, in the order in which the ranks began; [] without one."""
    found = []
    for path in folder.glob("*.json"):
        # A host that went down may leave an empty file; it was killed, and others say so.
        with suppress(OSError, ValidationError):
            found.append(_EXIT.validate_json(path.read_bytes()))
    return sorted(found, key=lambda each: each.began)


def _failed(this: Exit, error: BaseException) -> Exit:
    ours = isinstance(error, GradaccError)
    code = error.exit_code if isinstance(error, GradaccError) else 1
    return replace(
        this,
        ended=time.time(),
        exit_code=code,
        error=type(error).__name__,
        message=str(error),
        is_ours=ours,
        is_echo=isinstance(error, GradaccError) and error.same_on_all_ranks and this.rank != 0,
    )


def _write(path: Path, this: Exit) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(this)) + "\n")
        partial.replace(path)
