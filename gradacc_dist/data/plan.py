"""How a window is cut: examples → micro-batches → (rank, turn) cells. A pure function.

Micro-batches are formed from the window before any rank is looked at, so the same ones exist on
every cluster. They are then dealt to the ranks in turns. Every rank gets the same number of
turns, because sharded engines communicate in each forward; a rank without a micro-batch in the
last turn runs filler there, which holds no example and no item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradacc_dist.data.order import Ids


@dataclass(frozen=True)
class Cell:
    """One micro-batch of a window: which, and the examples in it (none: filler)."""

    index: int
    example_ids: Ids

    @property
    def is_filler(self) -> bool:
        """True where a rank only keeps step with the others."""
        return len(self.example_ids) == 0


@dataclass(frozen=True)
class Plan:
    """The cells of one window. `ranks[r]` lists rank r's cells, one a turn, equally many each."""

    ranks: tuple[tuple[Cell, ...], ...]
    num_micro_batches: int


def plan(example_ids: Ids, micro_batch_examples: int, num_ranks: int) -> Plan:
    """Cut a window into micro-batches of at most `micro_batch_examples` and deal them to ranks.

    Micro-batch i goes to rank i % num_ranks in turn i // num_ranks. Filler continues the
    numbering, so that every cell of a window has an index of its own.
    """
    starts = range(0, len(example_ids), micro_batch_examples)
    micro_batches = [example_ids[start : start + micro_batch_examples] for start in starts]
    num_turns = -(-len(micro_batches) // num_ranks)
    nothing = np.empty(0, dtype=np.int64)
    cells = [
        Cell(index, micro_batches[index] if index < len(micro_batches) else nothing)
        for index in range(num_turns * num_ranks)
    ]
    return Plan(tuple(tuple(cells[rank::num_ranks]) for rank in range(num_ranks)), len(starts))
