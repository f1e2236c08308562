"""Whether nodes share the output folder: node 0 puts a file there, and the others look for it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from launcher.launches import LAUNCHES

LOOK_SECONDS = 10.0
RETRY_SECONDS = 0.5


@contextmanager
def sign(output: str) -> Iterator[str]:
    """The name of a file among the launches of the run, while nodes meet; "" where there are none
    yet, or where none can be written: the run itself says why."""
    with ExitStack() as stack:
        name = ""
        with suppress(OSError):
            folder = Path(output, LAUNCHES)
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix=".meet-", dir=folder))
            name = Path(file.name).name
        yield name


def sees(output: str, name: str) -> bool:
    """Whether node 0's file is to be seen here, within the time that NFS may take."""
    folder, deadline = Path(output, LAUNCHES), time.monotonic() + LOOK_SECONDS
    while not _lists(folder, name):
        if time.monotonic() > deadline:
            return False
        time.sleep(RETRY_SECONDS)
    return True


def _lists(folder: Path, name: str) -> bool:
    """What is written into a folder makes NFS forget what it remembers of it, also that something
    was not there. So the innermost that is seen is written to."""
    with suppress(OSError):
        innermost = next(each for each in (folder, *folder.parents) if each.is_dir())
        with tempfile.NamedTemporaryFile(prefix=".look-", dir=innermost):
            pass
    with suppress(OSError):
        return any(path.name == name for path in folder.iterdir())
    return False
