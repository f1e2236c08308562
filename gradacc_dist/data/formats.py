"""From a row to tokens and labels: the shape of a row decides what is supervised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from gradacc_dist.data.sources import Row
from gradacc_dist.errors import DataError
from gradacc_dist.items import IGNORED_LABEL

SHAPES = {
    "text": "every token is supervised",
    "prompt, completion": "the completion is supervised",
}

Place: TypeAlias = str


@dataclass(frozen=True)
class Segment:
    """A piece of text, tokenised by itself so that no token straddles a change of supervision."""

    text: str
    supervised: bool


def segments(row: Row, place: Place) -> list[Segment]:
    """The pieces of `row`, in order; the last one is ended by the end-of-text token.

    Raises DataError naming the place, the columns found and the shapes that are known.
    """
    if "text" in row:
        return [Segment(_string(row, "text", place), supervised=True)]
    if "prompt" in row and "completion" in row:
        return [
            Segment(_string(row, "prompt", place), supervised=False),
            Segment(_string(row, "completion", place), supervised=True),
        ]
    known = "; ".join(f"{columns} ({meaning})" for columns, meaning in SHAPES.items())
    found = ", ".join(row) or "none"
    raise DataError(f"{place}: its columns are {found}, but a row needs one of: {known}")


def _string(row: Row, column: str, place: Place) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"{place}: {column} is {_described(value)}, but must be a string")
    return value


def _described(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} ({str(value)[:40]!r})"


@dataclass(frozen=True)
class Encoder:
    """Turns segments into (input_ids, labels) with the tokenizer's own special tokens."""

    tokenizer: PreTrainedTokenizerBase

    def encode(self, rows: Sequence[Sequence[Segment]]) -> list[tuple[list[int], list[int]]]:
        """One (input_ids, labels) a row, equally long. One call, for the tokenizer's threads."""
        texts = [segment.text for row in rows for segment in row]
        encoded = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        prefix = self._prefix()
        return [self._joined(row, [next(encoded) for _ in row], prefix) for row in rows]

    def _prefix(self) -> list[int]:
        """The begin-of-text token, where this tokenizer would put one."""
        bos = self.tokenizer.bos_token_id
        added = self.tokenizer("")["input_ids"]
        return [bos] if bos is not None and bos in added[:1] else []

    def _joined(
        self, row: Sequence[Segment], encoded: list[list[int]], prefix: list[int]
    ) -> tuple[list[int], list[int]]:
        input_ids, labels = list(prefix), [IGNORED_LABEL] * len(prefix)
        for segment, ids in zip(row, encoded, strict=True):
            input_ids += ids
            labels += ids if segment.supervised else [IGNORED_LABEL] * len(ids)
        eos = self.tokenizer.eos_token_id
        return [*input_ids, eos], [*labels, eos]
