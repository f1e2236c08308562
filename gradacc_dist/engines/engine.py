"""What a training step asks of an engine, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gradacc_dist.data.batch import MicroBatch
from gradacc_dist.engines.loss_scale import LossScale, ScaleState
from gradacc_dist.objectives.terms import ObjectiveModule


@dataclass(frozen=True)
class Update:
    """What became of a window's gradients.

    `grad_norm`: global L2 norm before clipping, the same on every rank. `skipped`: None after a
    step; where the norm is not finite, the weights and the optimizer's state are as before, and
    `loss_scale` says that float16 overflowed and the next window is tried at a lower scale.
    """

    grad_norm: float
    skipped: Literal["non_finite", "loss_scale"] | None


class Engine(ABC):
    """Holds the wrapped model and its optimizer; reduces gradients over the ranks.

    Per window: for each micro-batch, `forward` and `backward` within `micro_batch(last=...)`; then
    one `update`, or `discard`. All ranks make the same calls in the same order.
    """

    name: str
    reason: str
    """Why this engine, in words for the start table."""
    reduction_factor: float
    """What a loss is multiplied by so that the reduced gradients are a sum over the ranks.

    What the engine expects of itself; `confirm_reduction_factor` measures it before training."""
    reduces_once: bool
    """Gradients travel once a window; otherwise in each micro-batch."""
    extra_memory_bytes: int = 0
    """What reducing once a window costs each rank over reducing in each micro-batch."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of every weight and persistent buffer, whole, by the names of `state`."""

    _loss_scale: LossScale | None = None
    """Of an engine that scales float16's losses itself."""

    @property
    def loss_scale(self) -> float | None:
        """The factor that float16 puts on the next loss; None in other formats."""
        return self._loss_scale.value if self._loss_scale else None

    @property
    def loss_scale_state(self) -> ScaleState | None:
        """From what `loss_scale` goes on; None in formats without one."""
        return self._loss_scale.state if self._loss_scale else None

    def restore_loss_scale(self, state: ScaleState) -> None:
        """Go on with that of an earlier run; of no effect in formats without one."""
        if self._loss_scale is not None:
            self._loss_scale.restore(state)

    @abstractmethod
    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around one forward and backward. `last`: gradients are complete after this one."""

    @abstractmethod
    def forward(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Term sums of `batch`, which is moved to the device. Collective in sharded engines."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`. Collective in the last micro-batch, or in each."""

    @abstractmethod
    def gradients(self) -> dict[str, Tensor]:
        """Reduced, unclipped gradients, whole, by the model's parameter names. Collective.

        A copy of them all on every rank: for tests and audits.
        """

    @abstractmethod
    def local_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Like `gradients`, but this rank's part of each, not copied: a shard, or the whole.

        Collective, and so to be read to its end.
        """

    @abstractmethod
    def update(self, learning_rate: float, max_grad_norm: float | None) -> Update:
        """Clip, step and clear the gradients. Collective."""

    @abstractmethod
    def discard(self) -> None:
        """Clear the gradients without a step."""

    @abstractmethod
    def evaluate(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Term sums of `batch` without a graph, in evaluation mode. Collective when sharded."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """The model's full weights on the CPU by name; empty except on rank 0. Collective."""

    @abstractmethod
    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that training changes, by name, whole, one tensor at a time. Collective.

        Names as `engines.state` has them, alike and in one order on every rank. Of weights that
        the arithmetic rounds, the unrounded ones. A tensor may be reused once the next is asked
        for. To be read to its end.
        """

    @abstractmethod
    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave, under any engine and number of ranks. Collective.

        `saved` reads a tensor from disk when it is asked for, onto the CPU.
        """

    @property
    @abstractmethod
    def module(self) -> ObjectiveModule:
        """The module that was wrapped. Its parameters may be shards: use it for structure."""
