"""Reading a checkpoint's folder: nothing of a file is used before its hash is right.

Only manifest.json and the files that it names are ever opened. Others in the folder are ignored,
whatever they are called: people and tools leave notes, and a planted pickle stays unread.
Everything raises CheckpointError.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradacc_dist.checkpoint.manifest import MANIFEST, REMEDY, STATE, FileEntry, Manifest, parse
from gradacc_dist.errors import CheckpointError


def verify(folder: Path, part: int = 0, parts: int = 1) -> Manifest:
    """Check that every file of the checkpoint is there, of the right size, then of the right hash.

    With `parts` readers each reads its own share of the files; the checkpoint is whole when all
    of them return the same manifest.
    """
    manifest = read_manifest(folder)
    share = manifest.share(part, parts)
    for entry in share:  # all of them first: a cut file is found without reading the others
        _check_size(folder / entry.name, entry)
    for entry in share:
        _check_hash(folder / entry.name, entry)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`, its own integrity checked; no other file is looked at."""
    path = folder / MANIFEST
    with _naming(path):
        content = _regular(path).read_bytes()
    return parse(content, path)


def read_state(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What state.json holds; the very bytes that are parsed have been checked."""
    path = folder / STATE
    with _naming(path):
        content = _regular(path).read_bytes()
    _compare(path, "SHA-256", hashlib.sha256(content).hexdigest(), manifest.file(STATE).sha256)
    try:
        state: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}; {REMEDY}") from error
    return state


def _check_size(path: Path, entry: FileEntry) -> None:
    with _naming(path):
        num_bytes = _regular(path).stat().st_size
    _compare(path, "size in bytes", num_bytes, entry.num_bytes)


def _check_hash(path: Path, entry: FileEntry) -> None:
    with _naming(path), path.open("rb", buffering=0) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _compare(path, "SHA-256", found, entry.sha256)


def _compare(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise CheckpointError(
            f"{path}: damaged: its {what} is {found}, the manifest says {expected}; {REMEDY}"
        )


def _regular(path: Path) -> Path:
    """`path`, if there is an ordinary file: opening a pipe would wait forever."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: not an ordinary file; {REMEDY}")
    return path


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror or error}; {REMEDY}"
        ) from error
