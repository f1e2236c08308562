"""Next-token cross-entropy."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradacc_dist.data.batch import MicroBatch
from gradacc_dist.errors import ConfigError
from gradacc_dist.items import IGNORED_LABEL, causal_targets
from gradacc_dist.objectives.head import head_on_positions
from gradacc_dist.objectives.terms import Objective

TERM = "cross_entropy"


class CausalLM(Objective):
    """One term: the negative log-likelihood, in nats, of each supervised token."""

    weights: ClassVar[dict[str, float]] = {TERM: 1.0}

    def count(self, batch: MicroBatch) -> dict[str, int]:
        """Supervised tokens of `batch`."""
        return {TERM: int(_supervised(batch.labels).sum())}

    def sums(self, model: nn.Module, batch: MicroBatch) -> dict[str, Tensor]:
        """Sum of the negative log-likelihoods, in at least float32."""
        supervised = _supervised(batch.labels)
        targets = causal_targets(batch.labels)[supervised]
        # The last position predicts nothing: it never enters the head.
        positions = functional.pad(supervised, (0, 1), value=False)
        with head_on_positions(model, positions):
            logits = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
        if logits.shape[0] != targets.shape[0]:
            raise ConfigError(
                f"{type(model).__name__} gave logits of shape {tuple(logits.shape)} for "
                f"{targets.shape[0]} supervised tokens: its head is not a plain output embedding, "
                "and objective.name: causal_lm cannot train it"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return {TERM: functional.cross_entropy(logits, targets, reduction="sum")}


def _supervised(labels: Tensor) -> Tensor:
    """labels: (batch, length). Returns (batch, length - 1) bool, true at each item."""
    return causal_targets(labels) != IGNORED_LABEL
