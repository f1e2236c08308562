"""One run per output folder.

The kernel's lock on a file (flock) decides; what is written in the file only says whose it is. A
lock dies with its process, however that ends, so none is ever stale. Across nodes it holds on NFS
too (Linux 2.6.12 and later, where the server keeps it), and a server frees the lock of a lost node
after its lease, about 90 seconds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from gradacc_dist.errors import ConfigError, DiskError

LOCK = ".lock"


@dataclass(frozen=True)
class Owner:
    """The process that has a folder, or had it."""

    host: str
    pid: int
    started: str
    """When it took the folder, UTC."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"


_OWNER = TypeAdapter(Owner)


class RunLock:
    """Holds `output` for this process until closed. The file `.lock` stays: never delete it.

    `died`: the owner that ended without letting go, whose place this one takes; or None. Raises
    ConfigError where another run has the folder or its file system has no locks, and DiskError.
    """

    def __init__(self, output: Path) -> None:
        self._path = path = output / LOCK
        with DiskError.naming(path):
            self._file = path.open("a+b", buffering=0)
        try:
            _take(self._file.fileno(), output)
            self.died = _read_owner(self._file.fileno())
            started = datetime.now(UTC).isoformat(timespec="seconds")
            owner = Owner(socket.gethostname(), os.getpid(), started)
            with DiskError.naming(path):
                self._file.truncate(0)
                self._file.write(json.dumps(asdict(owner)).encode() + b"\n")
        except BaseException:
            self._file.close()
            raise
        # A forked worker that outlives this process must not keep the folder from the next run.
        os.register_at_fork(after_in_child=self._file.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if not self._file.closed:
            with DiskError.naming(self._path), self._file:
                self._file.truncate(0)


def _take(file: int, output: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = _read_owner(file) or "an unknown owner (it is just starting or stopping)"
        raise ConfigError(
            f"run.output_dir: {output} is in use by another run: {owner}; "
            "wait for it, stop it, or set --run.output_dir to another folder"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise DiskError(f"{output / LOCK}: cannot be locked: {error.strerror}") from error
        raise ConfigError(
            f"run.output_dir: {output} is on a file system without locks ({error.strerror}), so "
            "two runs could destroy each other's checkpoints; set --run.output_dir to another "
            "file system, or have this one mounted with locks (Lustre: -o flock)"
        ) from error


def _read_owner(file: int) -> Owner | None:
    try:
        return _OWNER.validate_json(os.pread(file, 4096, 0))
    except ValidationError:  # empty: let go of in order; or not yet written
        return None
