"""An objective: named loss terms, each a sum of per-item losses and a count of items.

Nothing here divides. The sum comes from the model, the count from the batch alone, before any
forward; the one division is in `gradacc_dist.denominator`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from gradacc_dist.data.batch import MicroBatch


class Objective(ABC):
    """What a model is trained on. `weights` names the terms and their weight in the loss."""

    weights: ClassVar[Mapping[str, float]]

    @abstractmethod
    def count(self, batch: MicroBatch) -> dict[str, int]:
        """Items of each term in `batch`, on the CPU, without the model; exact."""

    @abstractmethod
    def sums(self, model: nn.Module, batch: MicroBatch) -> dict[str, Tensor]:
        """Sum of the losses of the items that `count` counts, per term, as scalars with a graph.

        A batch without items gives finite zeros that still reach every parameter, because
        engines wait for each parameter's gradient.
        """


class ObjectiveModule(nn.Module):
    """Model and objective as the one module that engines wrap; nothing calls inside it."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Term sums of one micro-batch, scalars on the model's device."""
        return self.objective.sums(self.model, batch)
