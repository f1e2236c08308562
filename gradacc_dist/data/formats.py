"""From rows to tokens and labels: the shape of a row, and the user, decide what is supervised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from gradacc_dist.data.chat import Chat, Rendered, Span, is_conversation
from gradacc_dist.data.rows import Place, Row, described
from gradacc_dist.data.shapes import (
    IDS,
    LABELLED_IDS,
    MESSAGES,
    PAIR,
    TEXT,
    Shape,
    Supervise,
    text_of,
)
from gradacc_dist.errors import DataError
from gradacc_dist.items import IGNORED_LABEL

# What data.supervise can ask of plain rows; conversations take all of it.
OF_PLAIN: Mapping[Shape, tuple[Supervise, ...]] = MappingProxyType(
    {
        LABELLED_IDS: ("auto",),
        IDS: ("auto", "all"),
        PAIR: ("auto", "completion", "all"),
        TEXT: ("auto", "all"),
    }
)


class Encoded(NamedTuple):
    """One example, before truncation: equally long lists."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Segment:
    """A piece of text, tokenised by itself so that no token straddles a change of supervision."""

    text: str
    is_supervised: bool


@dataclass(frozen=True)
class Encoder:
    """Turns rows into tokens and labels, in batches, for the tokenizer's threads.

    Plain text gets the tokenizer's own begin-of-text token, where it puts one, and its
    end-of-text token, supervised. Conversations get what their template writes, token ids nothing.
    """

    tokenizer: PreTrainedTokenizerBase
    supervise: Supervise = "auto"

    def encode(self, rows: Iterable[tuple[Place, Row, Shape]]) -> list[Encoded]:
        """The rows in their order. Raises DataError naming the first that cannot be used."""
        parsed = [self._parsed(*row) for row in rows]
        encoded: list[Encoded] = []
        for _, group in groupby(parsed, key=type):
            encoded += self._encoded(list(group))
        return encoded

    def check(self, place: Place, row: Row, shape: Shape) -> None:
        """Refuse a plain row that cannot be encoded, at the cost of a look.

        A conversation is not rendered, so what its template refuses shows only when it is encoded.
        """
        if not (shape in (MESSAGES, PAIR) and is_conversation(row, shape)):
            self._parsed(place, row, shape)

    def _encoded(self, alike: list[Any]) -> list[Encoded]:
        """Rows that were all parsed into the same type."""
        if isinstance(alike[0], Rendered):
            return self._conversations(alike)
        return alike if isinstance(alike[0], Encoded) else self._plain(alike)

    def _parsed(
        self, place: Place, row: Row, shape: Shape
    ) -> Encoded | Rendered | tuple[Segment, ...]:
        if shape in (MESSAGES, PAIR) and is_conversation(row, shape):
            return self._chat.rendered(row, shape, place)
        if self.supervise not in OF_PLAIN[shape]:
            raise DataError(
                f"{place}: data.supervise: {self.supervise} does not fit columns {shape}; set it "
                f"to {' or '.join(OF_PLAIN[shape])}"
            )
        if shape in (IDS, LABELLED_IDS):
            return self._token_ids(row, place)
        return tuple(
            Segment(text_of(row[column], column, place), self._is_supervised(column))
            for column in shape.columns
        )

    def _is_supervised(self, column: str) -> bool:
        return column != "prompt" or self.supervise == "all"

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self.tokenizer, self.supervise)

    def _plain(self, rows: Sequence[Sequence[Segment]]) -> list[Encoded]:
        texts = [segment.text for row in rows for segment in row]
        encoded = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        return [self._joined(row, [next(encoded) for _ in row]) for row in rows]

    def _joined(self, row: Sequence[Segment], pieces: list[list[int]]) -> Encoded:
        input_ids, labels = list(self._beginning), [IGNORED_LABEL] * len(self._beginning)
        for segment, ids in zip(row, pieces, strict=True):
            input_ids += ids
            labels += ids if segment.is_supervised else [IGNORED_LABEL] * len(ids)
        end = self.tokenizer.eos_token_id
        return Encoded([*input_ids, end], [*labels, end])

    @cached_property
    def _beginning(self) -> list[int]:
        """The begin-of-text token, where this tokenizer would put one."""
        bos = self.tokenizer.bos_token_id
        added = self.tokenizer("")["input_ids"]
        return [bos] if bos is not None and bos in added[:1] else []

    def _conversations(self, rows: Sequence[Rendered]) -> list[Encoded]:
        texts = [row.text for row in rows]
        # What the template writes is all there is: no token is added.
        if self.supervise == "all":
            encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            return [Encoded(ids, list(ids)) for ids in encoded]
        found = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        return [
            Encoded(ids, _labels(ids, offsets, row.spans))
            for row, ids, offsets in zip(
                rows, found["input_ids"], found["offset_mapping"], strict=True
            )
        ]

    def _token_ids(self, row: Row, place: Place) -> Encoded:
        input_ids = self._ids(row["input_ids"], "input_ids", place)
        if "labels" not in row:
            return Encoded(input_ids, list(input_ids))
        labels = self._ids(row["labels"], "labels", place, also=IGNORED_LABEL)
        if len(labels) != len(input_ids):
            raise DataError(
                f"{place}: {len(labels)} labels for {len(input_ids)} input_ids; each token needs "
                f"one, {IGNORED_LABEL} where nothing is learned (the shift is made later)"
            )
        return Encoded(input_ids, labels)

    def _ids(self, value: Any, column: str, place: Place, also: int | None = None) -> list[int]:
        """Token ids of a column, each in the vocabulary, or `also`."""
        if not isinstance(value, list) or not value:
            what = "an empty list" if value == [] else described(value)
            raise DataError(f"{place}: {column} is {what}, but must be a list of token ids")
        size = len(self.tokenizer)
        for index, number in enumerate(value):
            if type(number) is not int:
                raise DataError(
                    f"{place}: {column}[{index}] is {described(number)}, but must be an integer"
                )
            if not 0 <= number < size and number != also:
                raise DataError(
                    f"{place}: {column}[{index}] is {number}, outside of the tokenizer's "
                    f"vocabulary (0 to {size - 1}); the row was made with another tokenizer than "
                    "model.tokenizer"
                )
        return value


def _labels(ids: list[int], offsets: list[Span], spans: Sequence[Span]) -> list[int]:
    """Labels of the tokens that stand for a character of a span; a character may need several.

    The rule of transformers' assistant masks, save that those drop all but the first token of a
    span's last character.
    """
    starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    is_supervised = np.zeros(len(ids), dtype=bool)
    for start, end in spans:
        is_supervised |= (starts < end) & (ends > start)
    return np.where(is_supervised, ids, IGNORED_LABEL).astype(int).tolist()
