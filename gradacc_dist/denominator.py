"""The one divider: count, agree, scale.

    L = sum over terms t of  w_t * (sum over ranks and micro-batches of S_t) / N_t

N_t, the global count of term t over the window, is known before the first backward: every rank
counts the items of its own micro-batches, the counts are shared in one small all-reduce, and each
micro-batch then runs backward on  w_t * S_t * reduction_factor / N_t.  No other module divides by
a count, by the number of ranks or by the number of micro-batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import torch
from torch import Tensor

from gradacc_dist.data.order import Window
from gradacc_dist.errors import DisagreementError
from gradacc_dist.world import SharedRows, World

Mode = Literal["window", "micro_batch_mean"]
Counts = Mapping[str, float]


@dataclass(frozen=True)
class LocalCounts:
    """What one rank brings to the agreement on a window.

    `fingerprint` stands for (step, example ids, config, data): equal on ranks that are about to
    compute the same thing. Below 2^48, so that float64 carries it exactly, like all the rest.
    """

    fingerprint: int
    num_turns: int
    input_tokens: int
    padded_tokens: int
    items: Counts

    def row(self) -> list[float]:
        """As one row of the shared matrix."""
        head = [self.fingerprint, self.num_turns, self.input_tokens, self.padded_tokens]
        return [float(value) for value in (*head, *self.items.values())]


@dataclass(frozen=True)
class Agreement:
    """What all ranks hold of a window, the same on each. `items` are the global denominators."""

    items: Counts
    input_tokens: int
    padded_tokens: int
    ranks: int

    @property
    def has_items(self) -> bool:
        """False for a window whose mean loss does not exist."""
        return any(count > 0 for count in self.items.values())


class PendingAgreement:
    """An agreement that was launched and not yet read."""

    def __init__(self, window: Window, terms: Sequence[str], rows: SharedRows, world: World):
        self._window = window
        self._terms = terms
        self._rows = rows
        self._world = world

    def wait(self) -> Agreement:
        """Read it. Collective. Raises DisagreementError, on every rank, naming who differs."""
        matrix = self._rows.wait()
        self._refuse_difference(matrix[:, 0], "step, example ids, configuration or data")
        self._refuse_difference(matrix[:, 1], "number of micro-batches")
        # Exact in any order: integers below 2^53.
        _, _, input_tokens, padded_tokens, *items = matrix.sum(dim=0).tolist()
        counts = dict(zip(self._terms, items, strict=True))
        return Agreement(counts, int(input_tokens), int(padded_tokens), len(matrix))

    def drain(self) -> None:
        """Let it arrive and ignore it, so that nothing is in flight when the ranks part."""
        self._rows.wait()

    def _refuse_difference(self, column: Tensor, what: str) -> None:
        values = [int(value) for value in column.tolist()]
        (common, _), *others = Counter(values).most_common()
        if others:
            named = ", ".join(
                f"{self._world.describe_rank(rank)} has {value:012x}"
                for rank, value in enumerate(values)
                if value != common
            )
            raise DisagreementError(
                f"step {self._window.step}: the ranks disagree on the {what}: most have "
                f"{common:012x}, but {named}. Give every rank the same configuration file, flags, "
                "data and version of gradacc_dist",
                same_on_all_ranks=True,
            )


def launch_agreement(window: Window, local: LocalCounts, world: World) -> PendingAgreement:
    """Start to agree on `window`. Collective, asynchronous; on the main thread only."""
    return PendingAgreement(window, list(local.items), world.share_row(local.row()), world)


def fingerprint(window: Window, run_sha256: str) -> int:
    """48 bits of (step, example ids, run). `run_sha256` stands for config, data and code."""
    text = f"{window.step} {window.ids_sha256} {run_sha256}"
    return int.from_bytes(sha256(text.encode()).digest()[:6])


@dataclass(frozen=True)
class Denominator:
    """The divisors of one window.

    `mode` "window" is the law above. "micro_batch_mean" is the historical bug, kept to be compared
    with: each micro-batch is divided by its own count, and the means are averaged.
    """

    mode: Mode
    agreement: Agreement
    num_micro_batches: int

    def divisors(self, local_items: Counts) -> dict[str, float]:
        """What each term's sum of a micro-batch with `local_items` is divided by; 0: no item."""
        if self.mode == "window":
            return dict(self.agreement.items)
        return {term: count * self.num_micro_batches for term, count in local_items.items()}

    def loss(
        self,
        sums: Mapping[str, Tensor],
        local_items: Counts,
        weights: Mapping[str, float],
        reduction_factor: float,
    ) -> Tensor:
        """The scalar on which a micro-batch runs backward.

        Summed over the window's micro-batches and reduced by the engine, its gradient is that of
        L. A term without items keeps its graph and counts zero.
        """
        divisors = self.divisors(local_items)
        scaled = [
            sums[term]
            * (weights[term] * reduction_factor / divisors[term] if divisors[term] else 0)
            for term in sums
        ]
        return torch.stack(scaled).sum()
