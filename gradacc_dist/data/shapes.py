"""The shapes that rows come in, told by their columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from gradacc_dist.data.rows import Place, Row, Rows, described
from gradacc_dist.errors import DataError

Supervise = Literal["auto", "assistant", "completion", "all"]


@dataclass(frozen=True)
class Shape:
    """Columns that belong together. `auto`: what is supervised unless the user says otherwise."""

    columns: tuple[str, ...]
    auto: Supervise
    meaning: str

    def __str__(self) -> str:
        return ", ".join(self.columns)


LABELLED_IDS = Shape(("input_ids", "labels"), "all", "tokens as they are, labels of -100 left out")
IDS = Shape(("input_ids",), "all", "tokens as they are, every one is supervised")
MESSAGES = Shape(("messages",), "assistant", "what the assistant writes is supervised")
PAIR = Shape(("prompt", "completion"), "completion", "the completion is supervised")
TEXT = Shape(("text",), "all", "every token is supervised")

# A row that has the columns of several is read as the first of them: the most explicit one.
SHAPES = (LABELLED_IDS, IDS, MESSAGES, PAIR, TEXT)

# Columns of well-known datasets that mean one of ours.
MEANT: Mapping[str, str] = MappingProxyType(
    {
        "conversations": "messages",
        "conversation": "messages",
        "instruction": "prompt",
        "question": "prompt",
        "input": "prompt",
        "output": "completion",
        "answer": "completion",
        "response": "completion",
        "content": "text",
        "input_id": "input_ids",
        "label": "labels",
    }
)


def shape_of(row: Row) -> Shape | None:
    """The shape whose columns a row has; other columns are carried along unread."""
    return next((shape for shape in SHAPES if all(name in row for name in shape.columns)), None)


def shaped(rows: Rows) -> Iterator[tuple[Place, Row, Shape]]:
    """Each row with its shape, the same for all rows of a file.

    Raises DataError naming the place, the columns found and the shapes that are known.
    """
    first, expected = Place("", 0), None
    for place, row in rows:
        shape = shape_of(row)
        is_first = place.file != first.file
        if shape is None:
            raise DataError(f"{place}: {_unknown(row, None if is_first else expected)}")
        if is_first:
            first, expected = place, shape
        elif shape is not expected:
            raise DataError(
                f"{place}: its columns are {_columns(row)}, but {first} has {expected}; all rows "
                "of a file need the same shape: divide the file, and name a folder of both"
            )
        yield place, row, shape


def text_of(value: Any, what: str, place: Place) -> str:
    """`value` as text that a tokenizer takes. Raises DataError naming `what` it should be."""
    if not isinstance(value, str):
        raise DataError(f"{place}: {what} is {described(value)}, but must be a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: {what} is not Unicode text: character {error.start} is half of a pair "
                f"(U+{ord(value[error.start]):04X}); write the character whole, or remove it"
            ) from error
    return value


def _unknown(row: Row, expected: Shape | None) -> str:
    known = "; ".join(f"{shape} ({shape.meaning})" for shape in SHAPES)
    if expected is not None:
        known = f"{expected}, as the rows before it"
    renames = [
        f"{name} to {MEANT[name]}" for name in row if name in MEANT and MEANT[name] not in row
    ]
    remedy = f"; rename {', '.join(renames)}?" if renames else ""
    need = f"but a row needs one of: {known}" if expected is None else f"but it needs {known}"
    return f"its columns are {_columns(row)}, {need}{remedy}"


def _columns(row: Row) -> str:
    return ", ".join(map(str, row)) or "none"
