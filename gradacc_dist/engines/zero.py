"""DeepSpeed's ZeRO 0 to 3: driven directly, so that the end of a window is ours to tell.

DeepSpeed averages over the ranks; the factor that undoes it is measured like any engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from copy import copy
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradacc_dist.data.batch import MicroBatch, collate
from gradacc_dist.data.tokens import Example
from gradacc_dist.engines.engine import Engine, Update
from gradacc_dist.engines.loss_scale import ScaleState
from gradacc_dist.engines.update import clip_and_step, square_sum
from gradacc_dist.engines.weights import take_weights_of_rank_0
from gradacc_dist.engines.zero_start import initialize, ready_deepspeed
from gradacc_dist.engines.zero_state import ZeroState
from gradacc_dist.items import IGNORED_LABEL
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.world import World


class ZeroEngine(Engine):
    """`settings`: a complete DeepSpeed configuration, without "auto".

    Stages 0 and 1 hold all gradients and reduce them once a window by themselves. 2 and 3 reduce
    in each micro-batch, or once with `reduces_once`, for which they then hold all gradients too.
    """

    def __init__(
        self,
        module: ObjectiveModule,
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        settings: Mapping[str, Any],
        world: World,
        *,
        reduces_once: bool,
        timeout_seconds: float,
    ) -> None:
        deepspeed = ready_deepspeed(
            world, compiles="optimizer" in settings, timeout_seconds=timeout_seconds
        )
        take_weights_of_rank_0(module, world)
        self._stage = int(settings["zero_optimization"]["stage"])
        self.name = f"zero{self._stage}"
        self.reduction_factor = float(world.ranks)
        self.reduces_once = reduces_once or self._stage < 2
        self._module = module
        self._world = world
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        if self._coalesces:
            self.extra_memory_bytes = sum(p.numel() * p.itemsize for p in self._parameters)
        lower = _lower_precision(settings)
        # DeepSpeed rounds weights and buffers to the format of the arithmetic, before it makes its
        # float32 copy of what is trained; of the rest it makes none.
        precise = _copies(module, with_trained=lower is not None)
        optimizer, settings = _optimizer(build_optimizer(module), settings)
        with redirect_stdout(StringIO()):  # prints how much memory it has, and that it compiled
            if self._stage == 3:
                # Parameter by parameter: the whole model need not fit the device.
                module.to(lower)
                deepspeed.zero.Init(module=module, config_dict_or_path=settings)
            self._engine, self._optimizer, *_ = initialize(
                deepspeed, model=module, config=settings, dist_init_required=False, **optimizer
            )
        self._state = self._restore(precise)
        self._window = ExitStack()

    def _restore(self, precise: dict[str, Tensor]) -> ZeroState:
        """Undo the rounding of weights and buffers."""
        for name, buffer in self._module.named_buffers():
            buffer.data = precise.pop(name).to(self._world.device)
        trained = {n: p for n, p in self._module.named_parameters() if p.requires_grad}
        unchanging = {
            name.removeprefix("model."): value
            for name, value in precise.items()
            if name not in trained
        }
        device = self._world.device
        state = ZeroState(self._module.model, self._optimizer, self._stage, unchanging, device)
        for name, parameter in trained.items():
            if name in precise and self._stage > 0:
                state.set_weight(parameter, precise[name])
        # At its smallest the scale would raise a bare Exception: whether to stop is ours to decide.
        if self._scales_dynamically:
            self._optimizer.loss_scaler.raise_error_at_min_scale = False
        return state

    @property
    def module(self) -> ObjectiveModule:
        """The module DeepSpeed wrapped; its parameters are placeholders under stage 3."""
        return self._module

    @property
    def loss_scale(self) -> float | None:
        """DeepSpeed's own."""
        return float(self._optimizer.cur_scale) if self._engine.fp16_enabled() else None

    @property
    def loss_scale_state(self) -> ScaleState | None:
        """By DeepSpeed's counters; a scale that its JSON has fixed has none."""
        if self.loss_scale is None or not self._scales_dynamically:
            return ScaleState(self.loss_scale, 0) if self.loss_scale else None
        scaler = self._optimizer.loss_scaler
        num_good = scaler.cur_iter - scaler.last_overflow_iter - 1
        # It lets the count run on when it raises the scale.
        since_change = num_good and (num_good - 1) % scaler.scale_window + 1
        return ScaleState(float(scaler.cur_scale), since_change, scaler.cur_hysteresis)

    def restore_loss_scale(self, state: ScaleState) -> None:
        """A scale that DeepSpeed's JSON has fixed stays."""
        if self._scales_dynamically:
            scaler = self._optimizer.loss_scaler
            scaler.cur_scale, scaler.cur_hysteresis = state.value, state.num_borne
            scaler.last_overflow_iter = scaler.cur_iter - state.num_good - 1

    @property
    def _scales_dynamically(self) -> bool:
        return bool(self._engine.fp16_enabled() and self._engine.dynamic_loss_scale())

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Tell DeepSpeed where the window ends."""
        if not self._coalesces:
            self._engine.set_gradient_accumulation_boundary(last)
            yield
            if not last:
                self._engine.step()  # counts the micro-batch; updates nothing
            return
        if not self._engine.inside_no_sync_ctxt:
            self._window.enter_context(self._engine.coalesce_grad_reduction())
        yield
        if last:
            self._window.close()
            self._engine.set_gradient_accumulation_boundary(True)

    @property
    def _coalesces(self) -> bool:
        return self.reduces_once and self._stage > 1

    def forward(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Term sums. Collective under stage 3."""
        sums: dict[str, Tensor] = self._engine(batch.to(self._world.device))
        return sums

    def backward(self, loss: Tensor) -> None:
        """Add gradients; DeepSpeed puts its loss scale on, and off again."""
        self._engine.backward(loss)

    def gradients(self) -> dict[str, Tensor]:
        """float32, gathered one by one."""
        return {name: gradient.clone() for name, gradient in self.local_gradients()}

    def local_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Whole, gathered one by one: DeepSpeed's shards cut through parameters."""
        from deepspeed.utils import safe_get_full_grad

        # DeepSpeed takes its loss scale off when it steps.
        unscale = (self.loss_scale or 1.0) ** -1
        for name, parameter in self._module.model.named_parameters():
            if parameter.requires_grad:
                gradient = safe_get_full_grad(parameter)
                if gradient is not None:
                    yield name, gradient if unscale == 1 else gradient * unscale

    def update(self, learning_rate: float, max_grad_norm: float | None) -> Update:
        """From stage 1 on DeepSpeed takes the norm and clips."""
        if self._stage == 0:
            norm = square_sum(gradient for _, gradient in self.local_gradients()).sqrt()
            update = clip_and_step(
                self._optimizer, self._parameters, norm, learning_rate, max_grad_norm
            )
            self.discard()
            return update
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.clip_grad = max_grad_norm or 0.0
        can_scale_less = self._can_scale_less()
        if self._step():
            return Update(float(self._engine.get_global_grad_norm()), None)
        return Update(float("inf"), "loss_scale" if can_scale_less else "non_finite")

    def _can_scale_less(self) -> bool:
        if not self._scales_dynamically:
            return False
        scaler = self._optimizer.loss_scaler
        return bool(scaler.cur_scale > scaler.min_scale)

    def _step(self) -> bool:
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        if not applied and self._stage < 3:
            # With an offloaded optimizer and gradients wider than the weights, DeepSpeed 0.19.8
            # forgets to: all later windows would be added to gradients that are not finite.
            # Its BF16_Optimizer (stage 1) keeps them elsewhere.
            kept = getattr(self._optimizer, "averaged_gradients", {})
            for group in kept:
                kept[group] = None
        return applied

    def discard(self) -> None:
        """Clear the gradients without a step. Collective from stage 1 on.

        By the path that DeepSpeed has for gradients that are not finite, which resets its buckets
        too: one token more adds gradients of NaN, and then no step is taken.
        """
        if self._stage == 0:
            self._engine.zero_grad()
            return
        scaler = copy(self._optimizer.loss_scaler) if self._engine.fp16_enabled() else None
        token = Example(input_ids=np.zeros(2, np.int32), labels=np.array([IGNORED_LABEL, 0]))
        sums = self.forward(collate(0, [token]))
        self.backward(torch.stack(list(sums.values())).sum() * float("nan"))
        applied = self._step()
        assert not applied, "DeepSpeed stepped on gradients of NaN"
        if scaler is not None:
            # No overflow of float16, and so nothing to lower its loss scale for.
            self._optimizer.loss_scaler = scaler

    def evaluate(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Through DeepSpeed's forward, which gathers the weights of stage 3."""
        self._engine.eval()
        with torch.no_grad():
            sums = self.forward(batch)
        self._engine.train()
        return sums

    def state_dict(self) -> dict[str, Tensor]:
        """float32 weights, gathered one at a time; only rank 0 keeps them. Tied stay one tensor."""
        whole: dict[int, Tensor] = {}
        named: dict[str, Tensor] = {}
        for name, value in self._module.model.state_dict(keep_vars=True).items():
            if id(value) not in whole:
                full = self._state.weight(name, value)
                whole[id(value)] = full.cpu().clone() if self._world.is_main else full.new_empty(0)
            named[name] = whole[id(value)]
        return named if self._world.is_main else {}

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Gathered one by one."""
        return self._state.named()

    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Every rank takes its part. See ZeroState.load for what it raises."""
        self._state.load(saved)


def _lower_precision(settings: Mapping[str, Any]) -> torch.dtype | None:
    formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return next((dtype for name, dtype in formats.items() if settings[name]["enabled"]), None)


def _copies(module: nn.Module, *, with_trained: bool) -> dict[str, Tensor]:
    """Buffers and frozen parameters by name, on the CPU, and the others if asked for."""
    kept = dict(module.named_buffers())
    kept |= {n: p for n, p in module.named_parameters() if with_trained or not p.requires_grad}
    return {name: value.detach().to("cpu", copy=True) for name, value in kept.items()}


def _optimizer(
    ours: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of deepspeed.initialize: our optimizer, or our groups for the one it names."""
    if "optimizer" not in settings:
        return {"optimizer": ours}, dict(settings)
    groups = [{k: group[k] for k in ("params", "weight_decay")} for group in ours.param_groups]
    shared = {name: ours.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    named = settings["optimizer"]
    params = {**named.get("params", {}), **shared}
    return {"model_parameters": groups}, {**settings, "optimizer": {**named, "params": params}}
