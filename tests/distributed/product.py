"""A case run through the product's own path: order of ids, plan, batch, agreement, engine, step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from distributed.cases import LEARNING_RATE, Case, Trace
from launching import DEEPSPEED_FILES
from torch.distributed.tensor import DTensor

from gradacc_dist.config.schema import Engine as EngineConfig
from gradacc_dist.config.schema import Optimizer, Precision
from gradacc_dist.data.order import Order, Window
from gradacc_dist.data.tokens import ById, Example
from gradacc_dist.denominator import Denominator
from gradacc_dist.engines import Engine, build_engine
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.optim import build_optimizer
from gradacc_dist.step import accumulate
from gradacc_dist.windows import Assembler, agreed_windows
from gradacc_dist.world import World

AUTO = EngineConfig()


class ListedTokens:
    """Examples held in memory, read like `Tokens`."""

    def __init__(self, examples: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self._examples = examples

    def examples(self, ids: np.ndarray) -> list[Example]:
        return [Example(*self._examples[i]) for i in ids]


def windows_of(case: Case) -> list[list[int]]:
    """The ids of each step, for the reference. Their order is tested elsewhere."""
    return [window.example_ids.tolist() for window in case_windows(case)]


def case_windows(case: Case) -> Iterator[Window]:
    if case.sizes:
        ends = np.cumsum(case.sizes)
        ids = zip(ends - case.sizes, ends, strict=True)
        return (Window(i + 1, 0, np.arange(a, b), int(b)) for i, (a, b) in enumerate(ids))
    return islice(Order(len(case.lengths), case.seed, case.window).windows(), case.steps)


def shipped(name: str, reduce: str = "auto") -> EngineConfig:
    """DeepSpeed with the JSON of that name: `zero2_offload`."""
    return EngineConfig(deepspeed=DEEPSPEED_FILES / f"{name}.json", reduce=reduce)


def build(world: World, case: Case, config: EngineConfig = AUTO, compute: str = "fp32") -> Engine:
    """The engine of `config` with SGD, on the case's model. Collective."""
    optimizer = Optimizer(name="sgd", learning_rate=LEARNING_RATE, weight_decay=0)
    return build_engine(
        config,
        ObjectiveModule(case.model(), CausalLM()),
        lambda module: build_optimizer(optimizer, module),
        world,
        Precision(compute=compute),
        environ={},
    )


def run_case(
    world: World,
    case: Case,
    micro_batch: int,
    mode: str = "window",
    config: EngineConfig = AUTO,
    compute: str = "fp32",
) -> Trace:
    """Train on every window with SGD. Collective; every rank returns whole tensors."""
    tokens = ListedTokens(case.examples())
    return run_windows(world, case, tokens, case_windows(case), micro_batch, mode, config, compute)


def run_windows(
    world: World,
    case: Case,
    tokens: ById,
    windows: Iterable[Window],
    micro_batch: int,
    mode: str = "window",
    config: EngineConfig = AUTO,
    compute: str = "fp32",
) -> Trace:
    """Train the case's model on these windows of these tokens. Collective."""
    built = build(world, case, config, compute)
    objective = built.module.objective
    assembler = Assembler(tokens, objective, micro_batch, world.rank, world.ranks, "test")
    trace = Trace([], [], [], {})
    for step, (local, agreement) in enumerate(agreed_windows(windows, assembler, world)):
        denominator = Denominator(mode, agreement, local.num_micro_batches)
        loss = accumulate(built, local, denominator, case.seed, world)
        trace.gradients.append(built.gradients())
        trace.norms.append(built.update(LEARNING_RATE, case.clip(step)).grad_norm)
        trace.losses.append(loss.loss)
        trace.counts.append(int(agreement.global_items["cross_entropy"]))
    trace.weights = weights_of(built)
    return trace


def weights_of(engine: Engine) -> dict[str, torch.Tensor]:
    """The model's weights on every rank, gathered by torch's or DeepSpeed's own means."""
    state = engine.module.model.state_dict(keep_vars=True)
    if engine.name.startswith("zero"):
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        full = {name: safe_get_full_fp32_param(value) for name, value in state.items()}
        with deepspeed.zero.GatheredParameters(
            [state[name] for name, value in full.items() if value is None]
        ):
            return {n: whole(state[n].detach() if v is None else v) for n, v in full.items()}
    return {name: whole(value.detach()) for name, value in state.items()}


def whole(value: torch.Tensor) -> torch.Tensor:
    """A copy, gathered by torch's own means where it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value.clone()
