"""One training problem, told twice: to the product, and to a plain loop that knows nothing of it.

`reference` is the independent single-process run: one loop over the examples, one at a time, no
padding, the loss divided once by the count of supervised tokens, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 61
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Case:
    """Examples are (input_ids, labels); `windows` lists the example ids of each step."""

    lengths: tuple[int, ...]
    fractions: tuple[float, ...]
    window: int
    steps: int
    seed: int = 0
    dtype: str = "float64"
    extra: dict[str, Any] = field(default_factory=dict)

    def examples(self) -> list[tuple[np.ndarray, np.ndarray]]:
        random = np.random.default_rng(self.seed)
        made = []
        for length, fraction in zip(self.lengths, self.fractions, strict=True):
            ids = random.integers(1, VOCABULARY, length)
            labels = np.where(random.random(length) < fraction, ids, -100)
            made.append((ids.astype(np.int32), labels.astype(np.int32)))
        return made

    def model(self) -> LlamaForCausalLM:
        torch.manual_seed(self.seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            max_position_embeddings=128,
        )
        return LlamaForCausalLM(config).to(getattr(torch, self.dtype))


@dataclass
class Trace:
    """Gradients, their norm and the loss at each step, and the weights after the last."""

    gradients: list[dict[str, torch.Tensor]]
    norms: list[float]
    losses: list[float]
    weights: dict[str, torch.Tensor]
    counts: list[int] = field(default_factory=list)


def reference(case: Case, windows: list[list[int]]) -> Trace:
    model = case.model().double()
    examples = case.examples()
    trace = Trace([], [], [], {})
    for ids in windows:
        model.zero_grad()
        count = sum(int((examples[i][1][1:] != -100).sum()) for i in ids)
        total = 0.0
        for i in ids:
            input_ids, labels = (torch.from_numpy(array).long()[None] for array in examples[i])
            logits = model(input_ids=input_ids).logits[0, :-1]
            loss = functional.cross_entropy(
                logits, labels[0, 1:], ignore_index=-100, reduction="sum"
            )
            (loss / count).backward()
            total += float(loss.detach())
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        trace.gradients.append(gradients)
        trace.norms.append(float(torch.stack([g.norm() for g in gradients.values()]).norm()))
        trace.losses.append(total / count)
        trace.counts.append(count)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= LEARNING_RATE * parameter.grad
    trace.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return trace


def worst_error(
    got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> tuple[float, str]:
    """Largest error of a tensor, by DESIGN contract 7, and its name.

    ||g - r|| / max(||r||, 1e-3 ||R||) with R all reference tensors: one whose true value is zero
    is measured against the whole.
    """
    assert got.keys() == expected.keys()
    whole = torch.stack([r.norm() for r in expected.values()]).norm()
    errors = {
        name: float((got[name].double() - r).norm() / max(r.norm(), 1e-3 * whole))
        for name, r in expected.items()
    }
    name = max(errors, key=lambda n: errors[n])
    return errors[name], name
