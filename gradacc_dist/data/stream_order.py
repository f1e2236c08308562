"""Which examples of a stream form window n: a function of (rows, seed, n) alone, as in `order`.

What a stream cannot have is a permutation of the whole: it is shuffled within a buffer that every
rank fills alike. A run that starts midway reads what came before, and tokenises none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import count, islice

import numpy as np

from gradacc_dist.data.order import Window
from gradacc_dist.data.stream import Held, Stream, StreamedRow
from gradacc_dist.items import count_causal_items


@dataclass(frozen=True)
class StreamOrder:
    """The windows of a streamed run, of `window_examples` each or of `window_items` items.

    A window never spans two epochs. `shuffle_buffer`: rows among which the next example is drawn;
    with 0 or 1 the order is that of the files. Reading a window makes `stream` hold it, and forget
    the one before: take a window only when done with the last.
    """

    stream: Stream
    seed: int
    shuffle_buffer: int = 0
    window_examples: int | None = None
    window_items: int | None = None

    def windows(self, step: int = 1, position: int = 0) -> Iterator[Window]:
        """The windows from `step` on, without end, when `position` examples have been seen.

        Raises DataError for rows that cannot be used, the same on every rank.
        """
        epoch, num_to_skip = 0, position
        while True:
            rows = self._drawn(epoch)
            size = sum(1 for _ in islice(rows, num_to_skip))
            for held in self._groups(rows):
                size += len(held)
                position += len(held)
                self.stream.hold(held)
                yield Window(step, epoch, np.array(list(held), np.int64), position)
                step += 1
            # Only now is the length of an epoch known, and how many of them are to be skipped.
            whole, rest = divmod(num_to_skip, size)
            epoch, num_to_skip = (epoch + whole, rest) if whole else (epoch + 1, 0)

    def _drawn(self, epoch: int) -> Iterator[StreamedRow]:
        """An epoch's rows, each drawn from the buffer; a row comes less than a buffer early."""
        rows = self.stream.rows()
        buffer = list(islice(rows, max(1, self.shuffle_buffer)))
        for position in count():
            if not buffer:
                return
            slot = self._slot(epoch, position, len(buffer))
            yield buffer[slot]
            following = next(rows, None)
            # At the end of the epoch the buffer empties: its last row fills the gap.
            last = buffer.pop() if following is None else following
            if slot < len(buffer):
                buffer[slot] = last

    def _slot(self, epoch: int, position: int, size: int) -> int:
        """Which of `size` rows comes at a position: by a hash, so that any rank draws the same."""
        digest = sha256(f"stream/{self.seed}/{epoch}/{position}".encode()).digest()
        return int.from_bytes(digest[:8]) % size

    def _groups(self, rows: Iterator[StreamedRow]) -> Iterator[Mapping[int, Held]]:
        """What each window of an epoch holds, by id, in order."""
        if self.window_examples is not None:
            return self._counted(rows, self.window_examples)
        assert self.window_items is not None, "a window has a size"
        return self._within_budget(rows, self.window_items)

    def _counted(self, rows: Iterator[StreamedRow], num: int) -> Iterator[Mapping[int, Held]]:
        while group := list(islice(rows, num)):
            for row in group:
                self.stream.check(row)
            yield {row.id: row for row in group}

    def _within_budget(
        self, rows: Iterator[StreamedRow], budget: int
    ) -> Iterator[Mapping[int, Held]]:
        """Examples in order while their items fit; at least one, however large it is."""
        group: dict[int, Held] = {}
        total = 0
        for row in rows:
            (example,) = self.stream.encoded([row])
            items = count_causal_items(example.labels)
            if group and total + items > budget:
                yield group
                group, total = {}, 0
            group[row.id] = example
            total += items
        if group:
            yield group
