"""Every error a user can meet: one root, few children, one exit code each.

An error states what failed, the values, and the remedy. It carries no traceback to the
terminal: the entry points print its text and leave with its exit code.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class GradaccError(Exception):
    """Root of the errors meant for users.

    `same_on_all_ranks`: every rank raises this very error at this very point (a verdict of an
    agreement, say), so that only rank 0 needs to print it.
    """

    exit_code = 1

    def __init__(self, message: str, *, same_on_all_ranks: bool = False) -> None:
        super().__init__(message)
        self.same_on_all_ranks = same_on_all_ranks


class ConfigError(GradaccError):
    """A setting is unknown, malformed, or in conflict with another."""

    exit_code = 10


class DataError(GradaccError):
    """A data file, row or tokenizer cannot be used as it is."""

    exit_code = 11


class DisagreementError(ConfigError):
    """The ranks are about to compute different things: other step, data, config or code."""


class EngineError(ConfigError):
    """An engine does not do to the gradients what it promises; training with it would be wrong."""


class ZeroItemsError(DataError):
    """A window holds no supervised item, so its mean loss does not exist."""


class CheckpointError(GradaccError):
    """A checkpoint is incomplete, damaged, or not one of this project's."""

    exit_code = 12


class PeerLostError(GradaccError):
    """A rank or a node is gone, or never came; start again to go on."""

    exit_code = 21


class NonFiniteError(GradaccError):
    """A loss or gradient is NaN or infinite; the weights were left as they were."""

    exit_code = 22


class PreemptedError(GradaccError):
    """The run was asked to leave (SIGTERM) and did; start it again to go on."""

    exit_code = 23


class DiskError(GradaccError):
    """A file of the run cannot be written: disk full, no permission, a failing device."""

    exit_code = 25

    @classmethod
    @contextmanager
    def naming(cls, path: Path, needed_bytes: int | None = None) -> Iterator[None]:
        """Turn an OSError of the body into a DiskError that names `path` and the cause.

        Of a full or failing disk also its mount point, the bytes free there, and `needed_bytes`,
        the whole size of what was being written, where that is known.
        """
        try:
            yield
        except OSError as error:
            raise cls(
                f"{path}: cannot be written: {error.strerror or error}"
                f"{_room(path, needed_bytes) if error.errno in OF_THE_DISK else ''}; "
                "free some space there, or set --run.output_dir to a folder that can be written"
            ) from error


OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})


def disk_of(path: Path) -> Path:
    """The mount point of the disk that holds `path`, or will once it is made."""
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if os.path.ismount(folder))


def _room(path: Path, needed_bytes: int | None) -> str:
    disk = disk_of(path)
    needed = "" if needed_bytes is None else f"{needed_bytes:,} bytes needed, "
    try:
        return f" (disk {disk}: {needed}{shutil.disk_usage(disk).free:,} bytes free)"
    except OSError:  # a device may fail to say even that
        return f" (disk {disk}: {needed}bytes free unknown)"
