"""Run a language model's head on chosen positions only.

The head (hidden size x vocabulary) is the largest product of a small model, and positions without
a label need none of it. A hook narrows the head's input; everything the model does to its logits
afterwards (scaling, soft-capping) still applies, because its own forward does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from gradacc_dist.errors import ConfigError


@contextmanager
def head_on_positions(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """Within, the output embedding of `model` sees the rows where `positions` is true.

    positions: (batch, length) bool. The logits then are (selected, vocabulary), in row order.
    Raises ConfigError for a model without an output embedding.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ConfigError(
            f"{type(model).__name__} has no language-model head (get_output_embeddings() is None); "
            "objective.name: causal_lm needs a model for causal language modelling"
        )

    def select(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = inputs
        return (hidden[positions], *rest)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
