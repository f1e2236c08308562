"""Several sources as one sequence of examples, each with its weight.

A weight says how many times an epoch holds a source's examples: its whole part repeats all of
them, its fraction adds a subset. So a mixture is as finite and as numbered as one source, and the
order of windows need not know of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from gradacc_dist.data.order import Ids, mixed
from gradacc_dist.data.tokens import Example, Tokens
from gradacc_dist.errors import DataError

# The increment of SplitMix64; without it row 0 would hash to 0, and be in every subset.
INCREMENT = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Part:
    """One source of a mixture. `left_out`: files of its folder that are not read."""

    name: str
    tokens: Tokens
    weight: float = 1.0
    left_out: tuple[str, ...] = ()


class Mixture:
    """The examples of all parts, part by part; ids are row numbers of the whole.

    `lengths`, `items`: (examples,) int64.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        chosen = [_rows_of(part) for part in self.parts]
        self._rows: Ids = np.concatenate(chosen)
        self._begins: Ids = np.cumsum([0, *map(len, chosen)])
        pairs = list(zip(self.parts, chosen, strict=True))
        self.lengths: NDArray[np.int64] = _concatenated(p.tokens.lengths[rows] for p, rows in pairs)
        self.items: NDArray[np.int64] = _concatenated(p.tokens.items[rows] for p, rows in pairs)
        identity = " ".join(f"{part.tokens.sha256} {part.weight!r}" for part in self.parts)
        self.sha256 = sha256(identity.encode()).hexdigest()

    def __len__(self) -> int:
        """Number of examples, each as often as its weight says."""
        return len(self._rows)

    def num_examples(self, part: int) -> int:
        """How many of the examples are of one part."""
        return int(self._begins[part + 1] - self._begins[part])

    def examples(self, ids: Ids) -> list[Example]:
        """The examples of these ids, in this order."""
        ids = np.asarray(ids, dtype=np.int64)
        part_of = np.searchsorted(self._begins, ids, side="right") - 1
        found: dict[int, Example] = {}
        for part in np.unique(part_of):
            positions = np.flatnonzero(part_of == part)
            examples = self.parts[part].tokens.examples(self._rows[ids[positions]])
            found.update(zip(positions.tolist(), examples, strict=True))
        return [found[position] for position in range(len(ids))]


def weighted_rows(num_rows: int, weight: float) -> Ids:
    """The rows of a source that an epoch holds: all of them int(weight) times, then a subset.

    The subset's size is the fraction of `num_rows`, rounded half up. It holds the rows of lowest
    hash: no seed decides, a larger fraction holds the smaller one's rows, and rows appended to the
    source change little.
    """
    rows = np.arange(num_rows)
    times = int(weight)
    size = int((weight - times) * num_rows + 0.5)
    hashes = mixed((rows.astype(np.uint64) + np.uint64(1)) * INCREMENT)
    subset = np.sort(np.argsort(hashes, kind="stable")[:size])
    return np.concatenate([np.tile(rows, times), subset])


def _rows_of(part: Part) -> Ids:
    rows = weighted_rows(len(part.tokens), part.weight)
    if len(rows) == 0:
        raise DataError(
            f"{part.name}: weight {part.weight:g} of {len(part.tokens)} rows is less than half a "
            "row; raise the weight, or leave the source out"
        )
    return rows


def _concatenated(arrays: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(list(arrays))
