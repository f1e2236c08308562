"""What training changes, by name: the weights, and the optimizer's state beside each of them.

A weight or persistent buffer has the model's own name, tied weights the first of theirs; the
optimizer's state of it is `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME` and so on. The names, and
what is under them, are the same under every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

STEP = "step"
"""How often an optimizer has updated a parameter: float32 without dimensions."""


def named_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, whole: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Of an optimizer that keeps its state per parameter. `whole` gathers one that is sharded."""
    for name, value in named_weights(model):
        yield name, whole(value.detach())
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(value, dtype=torch.float32 if key == STEP else None)
            yield f"{key}/{name}", whole(tensor)


def load_named_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    saved: Mapping[str, Tensor],
    like: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Take `saved` over, whatever engine it was saved under; all of its weights are there.

    `like(value, parameter)` copies of a whole tensor what belongs beside that parameter.
    """
    with torch.no_grad():
        for name, value in named_weights(model):
            value.copy_(like(saved[name], value))
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, name in optimizer_names(saved):
        parameter, value = parameters[name], saved[f"{key}/{name}"]
        is_step = key == STEP
        placed = placed_step(optimizer, parameter, value) if is_step else like(value, parameter)
        optimizer.state[parameter][key] = placed


def copy_like(value: Tensor, parameter: Tensor) -> Tensor:
    """All of it. A copy even where none is needed: optimizers write into their state."""
    return value.to(parameter, copy=True)


def placed_step(optimizer: torch.optim.Optimizer, parameter: Tensor, num_steps: Tensor) -> Tensor:
    """A copy, where torch's own `load_state_dict` would put it.

    On the CPU, but for optimizers whose kernel reads it where the parameter is.
    """
    reads_it = any(g.get("fused") or g.get("capturable") for g in optimizer.param_groups)
    return num_steps.to(parameter.device if reads_it else "cpu", torch.float32, copy=True)


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers with the model's names, each tensor once."""
    seen = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value


def optimizer_names(saved: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(`exp_avg`, parameter) and the like. No module's name holds a slash."""
    for path in saved:
        key, slash, name = path.partition("/")
        if slash:
            yield key, name
