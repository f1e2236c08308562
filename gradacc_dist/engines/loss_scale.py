"""float16's loss scale: gradients too small for float16 are computed larger, then brought back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Powers of two, so that scaling rounds nothing. The defaults of torch.amp.GradScaler.
FIRST = 2.0**16
PATIENCE = 2000


@dataclass(frozen=True)
class ScaleState:
    """From what a loss scale goes on, under any engine."""

    value: float
    num_good: int
    """Updates since it last changed, or gradients overflowed."""
    num_borne: int = 1
    """The overflow that lowers it, counted from now: 1, the next. DeepSpeed may bear some first."""


class LossScale:
    """The factor now on the loss. It composes with the denominator: both are on it at once.

    Halved when gradients overflow, doubled after PATIENCE updates without. The same on every
    rank, because all see the same gradient norm.
    """

    def __init__(self) -> None:
        self.value = FIRST
        self._num_good = 0

    @property
    def state(self) -> ScaleState:
        """What `restore` goes on from."""
        return ScaleState(self.value, self._num_good)

    def restore(self, state: ScaleState) -> None:
        """Go on where an earlier run was."""
        self.value = state.value
        self._num_good = state.num_good

    def remove(self, gradients: Sequence[Tensor]) -> None:
        """Bring gradients of a scaled loss to their size, in place."""
        if gradients:
            torch._foreach_mul_(list(gradients), self.value**-1)

    def overflowed(self) -> bool:
        """After gradients that are not finite. False when the scale cannot have been the cause."""
        self._num_good = 0
        is_cause = self.value > 1
        self.value = max(1.0, self.value * 0.5)
        return is_cause

    def applied(self) -> None:
        """After an update."""
        self._num_good += 1
        if self._num_good >= PATIENCE:  # more, where DeepSpeed's patience was longer
            self.value *= 2
            self._num_good = 0
