"""Sources too large to index: read row by row, in their own order, as training goes.

An example's id is the number of its row within the epoch, over all sources, so it means the same
on any cluster. Nothing is cached and no length is known: what a window does not hold is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from gradacc_dist.data import tokenizer as tokenizers
from gradacc_dist.data.formats import Encoded, Encoder
from gradacc_dist.data.order import Ids
from gradacc_dist.data.rows import Place, Row
from gradacc_dist.data.shapes import Shape, Supervise, shaped
from gradacc_dist.data.sources import Source
from gradacc_dist.data.tokens import Example
from gradacc_dist.errors import DataError
from gradacc_dist.items import count_causal_items


@dataclass(frozen=True)
class StreamedRow:
    """A row as it was read. `id`: its number within the epoch, from 0."""

    id: int
    place: Place
    row: Row
    shape: Shape


Held: TypeAlias = StreamedRow | Example


@dataclass(frozen=True)
class Tokenising:
    """How rows become examples: the settings that the examples depend on."""

    tokenizer: PreTrainedTokenizerBase
    supervise: Supervise
    max_length: int
    on_zero_items: Literal["error", "keep"]


class Stream:
    """Sources one after the other. Not for several threads: it holds the window in the making.

    `sha256` stands for sources and settings; of the rows it knows what can be known without
    reading them all (see `Source`).
    """

    def __init__(self, sources: Sequence[Source], tokenising: Tokenising) -> None:
        self.sources = tuple(sources)
        self.max_length = tokenising.max_length
        self._encoder = Encoder(tokenising.tokenizer, tokenising.supervise)
        self._zero_items_allowed = tokenising.on_zero_items == "keep"
        self._held: Mapping[int, Held] = {}
        parts = [tokenizers.fingerprint(tokenising.tokenizer), tokenising.supervise]
        parts += [str(self.max_length), *(source.sha256() for source in self.sources)]
        self.sha256 = sha256(" ".join(parts).encode()).hexdigest()

    def check_beginnings(self) -> None:
        """Read and encode the first row of each source, so that plain mistakes show at once."""
        for source in self.sources:
            self._encoder.encode([next(_rows_of(source))])

    def rows(self) -> Iterator[StreamedRow]:
        """The rows of one epoch. Raises DataError for what cannot be read or has no shape."""
        number = 0
        for source in self.sources:
            for place, row, shape in _rows_of(source):
                yield StreamedRow(number, place, row, shape)
                number += 1

    def check(self, row: StreamedRow) -> None:
        """Refuse what can be refused without tokenising. Cheap: every rank does it to every row."""
        self._encoder.check(row.place, row.row, row.shape)

    def encoded(self, rows: Sequence[StreamedRow]) -> list[Example]:
        """The rows' examples, in their order. Raises DataError naming an unusable one."""
        encoded = self._encoder.encode((row.place, row.row, row.shape) for row in rows)
        return [self._example(*pair) for pair in zip(rows, encoded, strict=True)]

    def hold(self, window: Mapping[int, Held]) -> None:
        """Keep a window's rows or examples, by id, and forget the window before."""
        self._held = window

    def examples(self, ids: Ids) -> list[Example]:
        """The examples of these ids of the window at hand, in this order."""
        held = [self._held[number] for number in ids.tolist()]
        fresh = iter(self.encoded([item for item in held if isinstance(item, StreamedRow)]))
        return [item if isinstance(item, Example) else next(fresh) for item in held]

    def _example(self, row: StreamedRow, encoded: Encoded) -> Example:
        labels = encoded.labels[: self.max_length]
        num_lost_tokens = len(encoded.labels) - len(labels)
        if not self._zero_items_allowed and count_causal_items(labels) == 0:
            had_some = num_lost_tokens and count_causal_items(encoded.labels)
            why = f" after data.max_length {self.max_length} cut it" if had_some else ""
            raise_it = "raise data.max_length, " if had_some else ""
            raise DataError(
                f"{row.place}: holds no supervised token{why}; {raise_it}change or remove the row, "
                "or set data.on_zero_items: keep, if it may add nothing to the loss"
            )
        ids = encoded.input_ids[: self.max_length]
        return Example(np.array(ids, np.int32), np.array(labels, np.int32), num_lost_tokens)


def _rows_of(source: Source) -> Iterator[tuple[Place, Row, Shape]]:
    number = 0
    for number, shaped_row in enumerate(shaped(source.rows()), start=1):  # noqa: B007
        yield shaped_row
    if number == 0:
        raise DataError(f"{source.name}: no rows; name a source that holds at least one")
