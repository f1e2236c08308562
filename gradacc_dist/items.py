"""What a supervised item is: the one rule that data, objectives and evaluation count by.

For a causal language model an item is a token with a label other than -100 that some earlier
position predicts. Labels follow transformers' convention: `labels[i]` is the label of token `i`,
so the logits at position `i - 1` answer for it, and the first label of a row is never an item.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

IGNORED_LABEL = -100


def causal_targets(labels: Tensor) -> Tensor:
    """The label that each position predicts.

    labels: (batch, length). Returns (batch, length - 1): entry `i` is what the logits at position
    `i` are compared with; the last position predicts nothing.
    """
    return labels[:, 1:]


def count_causal_items(labels: NDArray[np.integer] | list[int]) -> int:
    """Number of items of one example. labels: (length,), before the shift."""
    return int(np.count_nonzero(np.asarray(labels)[1:] != IGNORED_LABEL))
