"""From a setting to an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from torch import nn

from gradacc_dist.config.engine import EngineChoice, choose_engine
from gradacc_dist.config.schema import Engine as EngineConfig
from gradacc_dist.engines.engine import Engine
from gradacc_dist.engines.factor import confirm_reduction_factor
from gradacc_dist.engines.fsdp2 import FSDP2Engine, shard
from gradacc_dist.engines.replicated import ReplicatedEngine
from gradacc_dist.errors import ConfigError
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.world import World

# Of the arithmetic, where it is not that of the weights.
LOWER = {"bf16": torch.bfloat16}

BuildOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def build_engine(
    config: EngineConfig,
    module: ObjectiveModule,
    build_optimizer: BuildOptimizer,
    world: World,
    compute: str = "fp32",
    environ: Mapping[str, str] = os.environ,
) -> Engine:
    """Wrap `module` as `config.name` asks, and measure what the engine does. Collective.

    `build_optimizer` is called on the wrapped module. `compute`: see precision.compute. Raises
    ConfigError when the engine asked for does not fit the ranks there are, or is not the one in
    force afterwards; EngineError when it does not reduce gradients as it promises.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(
            f"no parameter of {type(module.model).__name__} is to be trained: all are frozen",
            same_on_all_ranks=True,
        )
    choice = choose_engine(config, environ, world.ranks)
    lower = LOWER.get(compute)
    if choice.name == "fsdp2":
        engine = _fsdp2(choice, module, build_optimizer, world, config.timeout_seconds, lower)
    else:
        engine = _replicated(choice, module, build_optimizer, world, lower)
    engine.reason = choice.reason
    confirm_reduction_factor(engine, world)
    return engine


def _replicated(
    choice: EngineChoice,
    module: ObjectiveModule,
    build_optimizer: BuildOptimizer,
    world: World,
    lower: torch.dtype | None,
) -> Engine:
    if (choice.name == "single") != (world.ranks == 1):
        raise ConfigError(
            f"engine.name: {choice.name} does not fit {world.ranks} rank(s); use auto, or start "
            + (
                "one process"
                if choice.name == "single"
                else "several with accelerate launch or torchrun"
            )
        )
    module.to(world.device)
    return ReplicatedEngine(
        module, build_optimizer, world, reduces_once=choice.reduces_once, autocast=lower
    )


def _fsdp2(
    choice: EngineChoice,
    module: ObjectiveModule,
    build_optimizer: BuildOptimizer,
    world: World,
    timeout_seconds: float,
    lower: torch.dtype | None,
) -> Engine:
    sharding = choice.sharding
    if world.ranks % sharding.replicas:
        raise ConfigError(
            f"engine.replicas: {sharding.replicas} groups cannot be formed of {world.ranks} "
            "rank(s); start a multiple of it, or choose a divisor of the ranks"
        )
    mesh = shard(module, sharding, world, timeout_seconds, lower)
    return FSDP2Engine(
        module,
        mesh,
        build_optimizer,
        world,
        reduces_once=choice.reduces_once,
        keeps_weights=not sharding.reshard_after_forward,
    )
