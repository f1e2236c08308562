"""Where rows come from: the embedded corpus, or a local JSONL file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from gradacc_dist.data import corpus
from gradacc_dist.errors import DataError

EMBEDDED = "embedded"
Row = dict[str, Any]
Role = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Source:
    """Rows to read. `name` is `embedded` or a path; `role` chooses the part of `embedded`."""

    name: str
    role: Role

    def sha256(self) -> str:
        """Stands for the rows: changes whenever they do. Raises DataError for a missing file."""
        if self.name == EMBEDDED:
            return sha256(f"{corpus.fingerprint()} {self.role}".encode()).hexdigest()
        digest = sha256()
        with _open(self.name) as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Each row with the place it stands at, for messages. Raises DataError naming it."""
        if self.name == EMBEDDED:
            for number, row in enumerate(corpus.rows(self.role), start=1):
                yield f"embedded {self.role} row {number}", row
            return
        with _open(self.name) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"{self.name}: row {number}"
                    yield place, _parsed(line, place)


def _open(name: str) -> Any:
    path = Path(name)
    if path.is_dir():
        raise DataError(f"{name}: is a folder; name one JSONL file in it")
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read ({error.strerror}); give data.train and data.evaluate the "
            f"path of a JSONL file (seen from {Path.cwd()}) or `{EMBEDDED}`"
        ) from error


def _parsed(line: bytes, place: str) -> Row:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 text ({error.reason} at byte {error.start})"
        ) from error
    except json.JSONDecodeError as error:
        shown = line[:80].decode(errors="replace").strip()
        raise DataError(
            f"{place}: not JSON ({error.msg} at column {error.colno}): {shown!r}; "
            "each line must be one JSON object"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{place}: a {type(row).__name__}, but each line must be one JSON object such as "
            '{"text": "..."} or {"prompt": "...", "completion": "..."}'
        )
    return row
