"""What a checkpoint consists of: its files with size and hash, and where each tensor is.

The file protects itself too: it begins with the SHA-256 of all that follows that hash, so that no
bit of it can change unnoticed. It is still plain JSON:

    {"sha256_of_what_follows": "<64 hex digits>",
    "format": 1, "step": 20, "files": [...]}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from gradacc_dist.errors import CheckpointError

FORMAT: Final = 1
MANIFEST = "manifest.json"
STATE = "state.json"

REMEDY = "restore it from a copy, or delete that checkpoint and resume from an earlier one"

_HEAD = b'{"sha256_of_what_follows": "'
_FRAMED = re.compile(re.escape(_HEAD) + rb'([0-9a-f]{64})(",\n(.*)\n)', re.DOTALL)


class FileEntry(BaseModel):
    """One file as its writer hashed it; crosses ranks as JSON, by pydantic's own methods."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    # Nothing that could lead out of the folder, or be taken for a pickle.
    name: Annotated[str, Field(pattern=r"^(state\.json|[a-z0-9-]+\.safetensors)$")]
    num_bytes: NonNegativeInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tensors: tuple[str, ...] = ()
    """Names of the tensors in it, each whole; none in state.json."""


class Manifest(BaseModel):
    """The files of one checkpoint, state.json among them; each tensor is in exactly one."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal[1] = FORMAT
    step: NonNegativeInt
    files: tuple[FileEntry, ...]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        _refuse_twins("file", (entry.name for entry in self.files))
        _refuse_twins("tensor", (name for entry in self.files for name in entry.tensors))
        if STATE not in {entry.name for entry in self.files}:
            raise ValueError(f"no {STATE} among the files")
        return self

    def file(self, name: str) -> FileEntry:
        """The entry of the file called `name`. Raises KeyError."""
        return {entry.name: entry for entry in self.files}[name]

    def tensors(self) -> dict[str, str]:
        """The name of the file that holds each tensor, by the tensor's name."""
        return {name: entry.name for entry in self.files for name in entry.tensors}

    def share(self, part: int, parts: int) -> list[FileEntry]:
        """The files that fall to `part` of `parts` readers: every file to one, bytes about even."""
        largest_first = sorted(self.files, key=lambda entry: (-entry.num_bytes, entry.name))
        return largest_first[part::parts]

    def to_bytes(self) -> bytes:
        """The content of manifest.json."""
        follows = b'",\n' + self.model_dump_json().encode()[1:] + b"\n"
        return _HEAD + hashlib.sha256(follows).hexdigest().encode() + follows


def parse(content: bytes, path: Path) -> Manifest:
    """The manifest that `content` of the file `path` states. Raises CheckpointError."""
    framed = _FRAMED.fullmatch(content)
    if framed is None:
        raise CheckpointError(f"{path}: damaged, or not written by gradacc_dist; {REMEDY}")
    expected, follows, fields = framed.groups()
    found = hashlib.sha256(follows).hexdigest()
    if found != expected.decode():
        raise CheckpointError(
            f"{path}: damaged: its SHA-256 is {found}, it states {expected.decode()}; {REMEDY}"
        )
    return _parse_fields(b"{" + fields, path)


def _parse_fields(text: bytes, path: Path) -> Manifest:
    try:
        written_in = json.loads(text).get("format")
        if written_in != FORMAT:
            raise CheckpointError(
                f"{path}: has format {written_in!r}, this version reads {FORMAT}; "
                "use the version of gradacc_dist that wrote it"
            )
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"{path}: not a manifest: {field + ': ' if field else ''}{first['msg']}; {REMEDY}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not a manifest: {error}; {REMEDY}") from error


def _refuse_twins(kind: str, names: Iterable[str]) -> None:
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        raise ValueError(f"{kind} {twins[0]!r} is named twice")
