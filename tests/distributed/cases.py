"""One training problem, told twice: to the product, and to a plain loop that knows nothing of it.

`reference` is the independent single-process run: one loop over the examples, one at a time, no
padding, the loss divided once by the count of supervised tokens, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 61
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Case:
    """Examples are (input_ids, labels). `max_norm` is of all steps, or a tuple of one for each;
    `sizes`, where given, are of the windows, in the order of the examples.
    """

    lengths: tuple[int, ...]
    fractions: tuple[float, ...]
    window: int
    steps: int
    seed: int = 0
    dtype: str = "float64"
    initializer_range: float = 0.2
    tied: bool = False
    frozen: tuple[str, ...] = ()
    max_norm: float | tuple[float | None, ...] | None = None
    sizes: tuple[int, ...] = ()
    hidden: int = 32
    heads: int = 4

    def clip(self, step: int) -> float | None:
        """The largest norm of the step, counted from 0."""
        return self.max_norm[step] if isinstance(self.max_norm, tuple) else self.max_norm

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
            hidden_size=self.hidden,
            head_dim=8,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads // 2,
            initializer_range=self.initializer_range,
            max_position_embeddings=128,
            tie_word_embeddings=self.tied,
        )
        model = LlamaForCausalLM(config).to(getattr(torch, self.dtype))
        for name in self.frozen:
            model.get_submodule(name).requires_grad_(False)
        return model


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
    for step, ids in enumerate(windows):
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
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        trace.norms.append(float(norm))
        trace.losses.append(total / count)
        trace.counts.append(count)
        # What torch's clip_grad_norm_ documents.
        clip = case.clip(step)
        scale = 1.0 if clip is None else min(1.0, clip / (float(norm) + 1e-6))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in gradients:
                    parameter -= LEARNING_RATE * scale * gradients[name]
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
