"""What a look at all tokens finds: examples that occur twice, sizes, rows worth showing.

Nothing is held of an example but 8 bytes, so memory grows by that and a few times 8 more bytes for
sorting, whatever the examples' lengths.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gradacc_dist.data.rows import Place
from gradacc_dist.data.sources import Source
from gradacc_dist.data.tokens import ROWS_NAMED, Tokens

Keys = NDArray[np.uint64]
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Repeats:
    """How many examples repeat another, and the first of them: (index, index of the other)."""

    num: int
    first: tuple[tuple[int, int], ...] = ()


def keys_of(tokens: Tokens) -> Keys:
    """A key for each example that only equal `input_ids` share. (examples,).

    64 bits: among ten million different examples two share one with a chance of 3e-6.
    """
    digests = bytearray()
    for values, offsets in tokens.input_ids():
        data = values.astype("<i4").tobytes()
        for start, end in pairwise((offsets * 4).tolist()):
            digests += blake2b(data[start:end], digest_size=8).digest()
    return np.frombuffer(digests, dtype=np.uint64)


def duplicates(keys: Keys) -> Repeats:
    """The examples whose key an earlier one has too."""
    order = np.argsort(keys, kind="stable")
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = keys[order[1:]] != keys[order[:-1]]
    beginnings = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    repeats = order[~is_first]
    return _named(repeats, order[beginnings[~is_first]])


def shared(keys: Keys, others: Keys) -> Repeats:
    """The examples of `keys` that are among `others` too, with their first place there."""
    known, first = np.unique(others, return_index=True)
    at = np.searchsorted(known, keys)
    at[at == len(known)] = 0
    found = np.flatnonzero(known[at] == keys) if len(known) else at[:0]
    return _named(found, first[at[found]])


def _named(repeats: NDArray[np.int64], originals: NDArray[np.int64]) -> Repeats:
    earliest = np.argsort(repeats)[:ROWS_NAMED]
    pairs = zip(repeats[earliest].tolist(), originals[earliest].tolist(), strict=True)
    return Repeats(len(repeats), tuple(pairs))


def quantiles(values: NDArray[np.int64]) -> list[int]:
    """The values at QUANTILES of (examples,): each is one that occurs."""
    found: list[int] = np.quantile(values, QUANTILES, method="inverted_cdf").astype(int).tolist()
    return found


def spread_by_length(lengths: NDArray[np.int64], num: int) -> list[int]:
    """Up to `num` examples (from 1 on) from the shortest to the longest, evenly in rank."""
    order = np.argsort(lengths, kind="stable")
    ranks = np.unique(np.linspace(0, len(order) - 1, num).astype(int))
    chosen: list[int] = order[ranks].tolist()
    return chosen


def places_of(sources: Iterable[tuple[Source, int]], indexes: Collection[int]) -> dict[int, Place]:
    """Where the rows stand that come `indexes`-th, from 0, when sources follow each other.

    `sources`: each with its number of rows. Reads each at most once, up to the last row asked for.
    """
    found: dict[int, Place] = {}
    begin = 0
    for source, num_rows in sources:
        within = sorted({index for index in indexes if begin <= index < begin + num_rows})
        places = source.places([index - begin for index in within])
        found.update(zip(within, places, strict=True))
        begin += num_rows
    return found
