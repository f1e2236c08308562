"""Which examples form window n: a function of (data, seed, n) alone.

The order of an epoch is a permutation that is computed, not stored: a Feistel network over the
positions, keyed by (seed, epoch). Any position is found without the ones before it, so a run
resumes anywhere at once, and the result depends on no library's generator and no cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

# Each round mixes one half of the bits into the other. Four suffice for a pseudo-random
# permutation when rounds are ideal (Luby and Rackoff 1988); ours are not, so six.
NUM_ROUNDS = 6


@dataclass(frozen=True)
class Window:
    """The examples between two optimizer steps, over all ranks.

    `step` counts windows from 1; `epoch` from 0. `examples_seen` is the position in the data after
    this window, a count of examples over all epochs. `example_ids` are row numbers of the data.
    """

    step: int
    epoch: int
    example_ids: Ids
    examples_seen: int

    @property
    def ids_sha256(self) -> str:
        """Fingerprint of the ids in their order, the same on every machine."""
        return sha256(self.example_ids.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class Order:
    """The windows of a run, of `window_examples` each or of `window_items` supervised items.

    `items` holds each example's count, by example id; only a budget of items reads it. A window
    never spans two epochs, so an epoch's last one is shorter when the examples do not divide.
    """

    num_examples: int
    seed: int
    window_examples: int | None = None
    window_items: int | None = None
    items: Ids | None = None

    def windows(self, step: int = 1, position: int = 0) -> Iterator[Window]:
        """The windows from `step` on, without end, when `position` examples have been seen."""
        while True:
            window = self.window_after(position, step)
            yield window
            step, position = step + 1, window.examples_seen

    def window_after(self, position: int, step: int) -> Window:
        """The window that begins after `position` examples. It depends on no other window."""
        epoch, start = divmod(position, self.num_examples)
        if self.window_examples is not None:
            ids = self._ids(epoch, start, self.window_examples)
        else:
            ids = self._ids_within_budget(epoch, start)
        return Window(step, epoch, ids, position + len(ids))

    def num_windows(self, epochs: float) -> int:
        """Windows until `epochs` passes are complete, the last one whole."""
        end = max(1, round(epochs * self.num_examples))
        if self.window_examples is not None:
            whole, rest = divmod(end, self.num_examples)
            per_epoch = -(-self.num_examples // self.window_examples)
            return whole * per_epoch + -(-rest // self.window_examples)
        return sum(1 for _ in takewhile(lambda w: _begin(w) < end, self.windows()))

    def _ids(self, epoch: int, start: int, num: int) -> Ids:
        positions = np.arange(start, min(start + num, self.num_examples))
        return permuted(positions, self.num_examples, key=(self.seed, epoch))

    def _ids_within_budget(self, epoch: int, start: int) -> Ids:
        """Examples in order while their items fit; at least one, however large it is."""
        assert self.items is not None, "a budget of items needs each example's count"
        assert self.window_items is not None, "a window has a size"
        num = 64
        while True:
            ids = self._ids(epoch, start, num)
            fitting = int(np.searchsorted(np.cumsum(self.items[ids]), self.window_items, "right"))
            if fitting < len(ids) or start + num >= self.num_examples:
                return ids[: max(1, fitting)]
            num *= 2


def _begin(window: Window) -> int:
    return window.examples_seen - len(window.example_ids)


def permuted(positions: Ids, size: int, key: tuple[int, int]) -> Ids:
    """The images of `positions` under a permutation of range(size) chosen by `key`.

    The network permutes a power of four >= size; an image outside the range is sent through again
    until it falls inside (cycle walking), which keeps it a permutation of the range.
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    keys = _round_keys(key)
    images = _feistel(positions.astype(np.uint64), half_bits, keys)
    while (outside := images >= np.uint64(size)).any():
        images[outside] = _feistel(images[outside], half_bits, keys)
    return images.astype(np.int64)


def _round_keys(key: tuple[int, int]) -> NDArray[np.uint64]:
    digest = b"".join(sha256(f"{key}/{block}".encode()).digest() for block in range(2))
    return np.frombuffer(digest, dtype="<u8")[:NUM_ROUNDS].astype(np.uint64)


def _feistel(
    values: NDArray[np.uint64], half_bits: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (mixed(right ^ key) & mask)
    return (left << shift) | right


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijective 64-bit mix (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
