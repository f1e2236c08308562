"""What DeepSpeed keeps, by the names of `engines.state`.

From stage 1 on, DeepSpeed lays a group of parameters end to end in one flat float32 tensor, of
which each rank has a part. Its optimizer knows these parts only: one state, and one count of steps,
for many parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradacc_dist.engines.state import (
    STEP,
    copy_like,
    load_named_state,
    named_state,
    named_weights,
    optimizer_names,
    placed_step,
)
from gradacc_dist.errors import ConfigError


class ZeroState:
    """`optimizer` is what deepspeed.initialize made for `model` at `stage`.

    `unchanging`: by name, in full precision, what is not trained. DeepSpeed has rounded copies.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        stage: int,
        unchanging: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        self._model = model
        self._zero = optimizer
        self._stage = stage
        self._unchanging = unchanging
        self._device = device
        self._inside: torch.optim.Optimizer = optimizer if stage == 0 else optimizer.optimizer

    def weight(self, name: str, value: Tensor) -> Tensor:
        """The whole of a parameter or buffer, float32, not necessarily a copy. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        if name in self._unchanging:
            return self._unchanging[name]
        full = safe_get_full_fp32_param(value) if self._stage > 0 else None
        return value.detach() if full is None else full

    def set_weight(self, parameter: Tensor, whole: Tensor) -> None:
        """A trained one, in float32: what the arithmetic uses is not changed."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self._stage == 3:
            safe_set_local_fp32_param(parameter, _part(parameter, whole.to(self._device)))
        else:
            safe_set_full_fp32_param(parameter, whole.to(self._device))

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """See Engine.state. Collective."""
        if self._stage == 0:
            _even_out_steps(self._inside)
            yield from named_state(self._model, self._inside, lambda value: value)
            return
        for name, value in named_weights(self._model):
            yield name, self.weight(name, value)
        # All flat tensors step together, so the first tells of every one.
        kept = self._inside.state.get(self._flat_tensors()[0], {})
        self._link()
        for name, parameter in self._trained():
            for key, value in kept.items():
                yield f"{key}/{name}", self._kept(parameter, key, value)

    def _kept(self, parameter: nn.Parameter, key: str, flat: Any) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        if key == STEP:
            return torch.as_tensor(flat, dtype=torch.float32)
        whole: Tensor = safe_get_full_optimizer_state(parameter, key)
        return whole

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """See Engine.load_state. Collective.

        Raises ConfigError where parameters have been through different numbers of steps.
        """
        with torch.no_grad():
            for name, value in named_weights(self._model):
                if name in self._unchanging:
                    self._unchanging[name].copy_(saved[name])
                    self._set_unchanging(value, saved[name])
                elif not isinstance(value, nn.Parameter):
                    value.copy_(saved[name])
                elif self._stage > 0:
                    self.set_weight(value, saved[name])
        if self._stage == 0:
            load_named_state(self._model, self._inside, saved, copy_like)
            _count_as_its_own(self._inside)
            return
        self._refresh()
        self._load_optimizer(saved)

    def _set_unchanging(self, value: Tensor, whole: Tensor) -> None:
        """What the arithmetic uses of a parameter that is not trained."""
        if self._stage < 3:
            value.copy_(whole)
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([value], modifier_rank=0):
            if dist.get_rank() == 0:
                value.copy_(whole)

    def _refresh(self) -> None:
        """Round the float32 weights anew, as DeepSpeed does at the end of its own step."""
        if self._stage < 3:
            self._zero.update_lp_params()
            return
        self._zero.checkpoint_event_prologue()  # small parameters are kept whole: let go of them
        for index in range(len(self._flat_tensors())):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
        self._zero.invalidate_secondary_tensor()
        self._zero.checkpoint_event_epilogue()

    def _load_optimizer(self, saved: Mapping[str, Tensor]) -> None:
        """Make the state that DeepSpeed would make in its first step, and fill it.

        A step of zeros would make it too, but costs a forward, counts, and moves the loss scale.
        """
        keys = dict.fromkeys(key for key, _ in optimizer_names(saved))
        self._inside.state.clear()
        for flat in self._flat_tensors() if keys else ():
            self._inside.state[flat] = {
                key: placed_step(self._inside, flat, _one_step(saved))
                if key == STEP
                else torch.zeros_like(flat)
                for key in keys
            }
        _count_as_its_own(self._inside)
        self._link()
        parameters = dict(self._trained())
        for key, name in optimizer_names(saved):
            if key != STEP:
                self._set_kept(parameters[name], key, saved[f"{key}/{name}"].to(self._device))

    def _set_kept(self, parameter: nn.Parameter, key: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self._stage == 3:
            safe_set_local_optimizer_state(parameter, _part(parameter, whole), key)
        else:
            safe_set_full_optimizer_state(parameter, whole, key)

    def _flat_tensors(self) -> list[Tensor]:
        """What the optimizer's state is of."""
        if self._stage == 3:
            return list(self._zero.fp32_partitioned_groups_flat)
        return [group["params"][0] for group in self._inside.param_groups]

    def _link(self) -> None:
        """Show each parameter of stages 1 and 2 where in the flat state its own is.

        DeepSpeed 0.19.8 does so once, after the first group's first step, when the other groups
        have no state yet: of theirs nothing could ever be read.
        """
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        flats = self._flat_tensors()
        for _, parameter in self._trained() if self._stage < 3 else ():
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # None: all elsewhere
            if mapping is not None:
                flat = flats[mapping.param_group_index]
                lazy_init_hp_params_optimizer_state([parameter], flat, self._inside.state)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self._model.named_parameters() if p.requires_grad)


def _part(parameter: Tensor, whole: Tensor) -> Tensor:
    """This rank's of a parameter of stage 3, flat, with zeros after the last rank's end.

    DeepSpeed 0.19.8 can cut only what divides by the number of ranks.
    """
    length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    rank = dist.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
    part = whole.flatten()[rank * length : (rank + 1) * length]
    return nn.functional.pad(part, (0, length - part.numel()))


def _one_step(saved: Mapping[str, Tensor]) -> Tensor:
    counts = {float(saved[f"{k}/{name}"]): name for k, name in optimizer_names(saved) if k == STEP}
    if len(counts) > 1:
        (one, first), (other, second) = list(counts.items())[:2]
        raise ConfigError(
            f"engine.name: deepspeed counts one number of steps for all parameters, but {first} "
            f"was stepped {one:g} times and {second} {other:g} times; resume with engine.name: "
            "single, ddp or fsdp2",
            same_on_all_ranks=True,
        )
    return torch.tensor(next(iter(counts)))


def _is_deepspeeds_own(optimizer: torch.optim.Optimizer) -> bool:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    return isinstance(optimizer, FusedAdam | DeepSpeedCPUAdam)


def _count_as_its_own(optimizer: torch.optim.Optimizer) -> None:
    """DeepSpeed's own optimizers count steps in int, where torch has a tensor."""
    for state in optimizer.state.values() if _is_deepspeeds_own(optimizer) else ():
        state[STEP] = int(state[STEP])


def _even_out_steps(optimizer: torch.optim.Optimizer) -> None:
    """DeepSpeed's FusedAdam counts on in the state of a group's last parameter alone, and uses it
    for all: those of the others stay at 0."""
    for group in optimizer.param_groups if _is_deepspeeds_own(optimizer) else ():
        states = [optimizer.state[p] for p in group["params"] if p in optimizer.state]
        for state in states:
            state[STEP] = max(other[STEP] for other in states)
