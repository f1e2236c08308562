"""Parameter groups, optimizers, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from gradacc_dist.config.schema import Optimizer, Schedule


def build_optimizer(config: Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters of `module`, after an engine wrapped it.

    The learning rate starts at zero: whoever steps sets it first, from `learning_rate`.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # Biases and the gains of normalisation layers are vectors; decaying them only harms.
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(
    optimizer: Optimizer, schedule: Schedule, num_steps: int, num_updates: int
) -> float:
    """The rate of the next optimizer step when `num_updates` of a run of `num_steps` are made.

    Rises linearly over the warm-up, the first step above zero and the last at the peak; then
    falls from the peak to `final_fraction` of it at the run's last step.
    """
    peak = optimizer.learning_rate
    if num_updates < schedule.warmup_steps:
        return peak * (num_updates + 1) / schedule.warmup_steps
    first = schedule.warmup_steps
    if schedule.shape == "warmup_stable_decay":
        first = max(first, num_steps - round(schedule.decay_fraction * num_steps))
    # The run's last step, number num_steps - 1 from zero, is trained at the final rate.
    progress = (num_updates - first) / max(1, num_steps - 1 - first)
    return peak * _decayed(schedule, min(max(progress, 0.0), 1.0))


def _decayed(schedule: Schedule, progress: float) -> float:
    """Fraction of the peak rate. progress: 0 where it begins to fall, 1 at the last step."""
    if schedule.shape == "constant":
        return 1.0
    is_cosine = schedule.shape == "cosine"
    falling = (1 + math.cos(math.pi * progress)) / 2 if is_cosine else 1 - progress
    return schedule.final_fraction + (1 - schedule.final_fraction) * falling
