"""From gradients to weights, for engines whose optimizer is torch's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from gradacc_dist.engines.engine import Update
from gradacc_dist.engines.loss_scale import LossScale


def square_sum(gradients: Iterable[Tensor]) -> Tensor:
    """Sum of the squares of all elements, a float64 scalar on the gradients' device.

    In float64, because torch adds squares in the gradients' precision: float32 on a CPU is off by
    3e-5 at ten million elements, by more or less according to how they are cut into shards.
    """
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]
    return torch.stack(norms).square().sum()


def clip_and_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    norm: Tensor,
    learning_rate: float,
    max_grad_norm: float | None,
    loss_scale: LossScale | None = None,
) -> Update:
    """Step on gradients whose global L2 norm is `norm`, unless that is not finite."""
    if not norm.isfinite():
        is_scale = loss_scale is not None and loss_scale.overflowed()
        return Update(float(norm), "loss_scale" if is_scale else "non_finite")
    if max_grad_norm is not None:
        clip_grads_with_norm_(parameters, max_grad_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    if loss_scale is not None:
        loss_scale.applied()
    return Update(float(norm), None)
