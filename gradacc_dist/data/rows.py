"""A row of data, and the place it stands at, by which messages name it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Row `row` (from 1; of a text file, the line) of `file`, as the user would write it."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}: row {self.row}"


Rows: TypeAlias = Iterator[tuple[Place, Row]]


def described(value: Any) -> str:
    """A value found where another was needed: its type, and its beginning."""
    if value is None:
        return "null"
    shown = str(value)[:40].encode("utf-8", "backslashreplace").decode()
    return f"{type(value).__name__} ({shown!r})"
