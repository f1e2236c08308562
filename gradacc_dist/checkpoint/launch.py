"""A launch that is started again goes on with the run that it began.

`run.overwrite`, `run.resume: never` and `run.resume: PATH` are orders to a launch, and not to each
of its starts: a scheduler that requeues a job, or a launcher that restarts its ranks, repeats the
command as it was, and would have the run's own progress deleted or refused. The launcher names the
launch in an environment variable, the same over all of its starts; the run's folder remembers by
which launch the run in it was begun. Whoever starts a run by hand gives new orders each time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gradacc_dist.checkpoint.disk import replace_text
from gradacc_dist.errors import DiskError
from gradacc_dist.exits import LAUNCH_ID

LAUNCH = ".launch"
"""The file in a run's output folder."""


def launch_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """The launch that this process belongs to; None where no launcher names one."""
    return environ.get(LAUNCH_ID) or None


def began(folder: Path, launch: str | None) -> bool:
    """Whether the run in `folder` was begun by `launch`. Raises DiskError."""
    if launch is None:
        return False
    path = folder / LAUNCH
    with DiskError.naming(path):
        return path.exists() and path.read_bytes() == _content(launch).encode()


def remember(folder: Path, launch: str | None) -> None:
    """From now on the run in `folder` is one that `launch` began. Raises DiskError."""
    path = folder / LAUNCH
    if launch is not None:
        replace_text(path, _content(launch))
        return
    with DiskError.naming(path):
        path.unlink(missing_ok=True)


def _content(launch: str) -> str:
    return f"{launch}\n"
