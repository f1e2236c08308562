"""Files that are on the disk when a function returns: written whole, hashed, fsynced.

Imports no torch, as nothing here but `export` does. Everything raises DiskError.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from gradacc_dist.errors import DiskError, disk_of

CHUNK_BYTES = 8 << 20

Bytes = bytes | bytearray | memoryview


def free_bytes(folder: Path) -> int:
    """Bytes free to this user on the disk that holds `folder`, or will; quotas are not seen."""
    with DiskError.naming(folder):
        return shutil.disk_usage(disk_of(folder)).free


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse, before anything is written, what would not fit on the disk of `folder`."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise DiskError(
            f"{folder}: too little space: {needed_bytes:,} bytes needed, {free:,} free on disk "
            f"{disk_of(folder)}; free {needed_bytes - free:,} bytes there, keep fewer checkpoints, "
            "or set --run.output_dir to a folder on a larger disk"
        )


def write_new(path: Path, parts: Sequence[Bytes]) -> tuple[int, str]:
    """Write `parts` one after another into a new file; return its bytes and SHA-256 in hex.

    No second copy of the parts is made. A file of that name is an error, never overwritten.
    """
    num_bytes = sum(memoryview(part).nbytes for part in parts)
    digest = hashlib.sha256()
    with DiskError.naming(path, num_bytes):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for chunk in _chunks(parts):
                digest.update(chunk)
                _write_all(file, chunk)
            os.fsync(file)
        finally:
            os.close(file)
    return num_bytes, digest.hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Give `path` the content `text`: a reader, or a crash, sees the old file or the new one."""
    new = path.with_name(path.name + ".new")
    with DiskError.naming(path):
        new.unlink(missing_ok=True)  # of an earlier crash
        write_new(new, [text.encode()])
        new.replace(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """See onto the disk what any process has written to the file `path`."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut: what was created, renamed and removed."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def remove_folder(folder: Path) -> None:
    """Remove `folder` and what is in it."""
    with DiskError.naming(folder):
        if folder.is_symlink():  # moved to another disk by its owner: only the link is ours
            folder.unlink()
        else:
            shutil.rmtree(folder)


def _sync(path: Path, flags: int) -> None:
    with DiskError.naming(path):
        file = os.open(path, flags | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _chunks(parts: Sequence[Bytes]) -> Iterator[memoryview]:
    for part in parts:
        view = memoryview(part)
        if view.nbytes:  # a view without elements cannot be cast
            flat = view.cast("B")
            for start in range(0, flat.nbytes, CHUNK_BYTES):
                yield flat[start : start + CHUNK_BYTES]


def _write_all(file: int, chunk: memoryview) -> None:
    while chunk:  # a second round only where the kernel wrote a part (disk nearly full)
        chunk = chunk[os.write(file, chunk) :]
