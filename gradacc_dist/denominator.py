"""The one divider.

    L = sum over terms t of  w_t * (sum over ranks and micro-batches of S_t) / N_t

S_t is the sum of the losses of a micro-batch's items. N_t, the global count of term t's items over
the window, is agreed on before the first backward (`gradacc_dist.agreement`), so each micro-batch
runs backward on  w_t * S_t * reduction_factor / N_t.  Nothing else divides what runs backward: not
by a count, not by the number of ranks, not by the number of micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradacc_dist.agreement import Agreement, Counts

Mode = Literal["window", "micro_batch_mean"]


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
            return dict(self.agreement.global_items)
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
