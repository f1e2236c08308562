"""From a setting to an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gradacc_dist.config.deepspeed import settings
from gradacc_dist.config.engine import EngineChoice, choose_engine
from gradacc_dist.config.schema import Engine as EngineConfig
from gradacc_dist.config.schema import Precision
from gradacc_dist.engines.engine import Engine
from gradacc_dist.engines.factor import confirm_reduction_factor
from gradacc_dist.engines.fsdp2 import FSDP2Engine, shard
from gradacc_dist.engines.loss_scale import LossScale
from gradacc_dist.engines.replicated import ReplicatedEngine
from gradacc_dist.engines.state import named_weights
from gradacc_dist.engines.zero import ZeroEngine
from gradacc_dist.errors import ConfigError
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.world import World

# Of the arithmetic, where it is not that of the weights.
LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}

DEFAULT_PRECISION = Precision()

BuildOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def build_engine(
    config: EngineConfig,
    module: ObjectiveModule,
    build_optimizer: BuildOptimizer,
    world: World,
    precision: Precision = DEFAULT_PRECISION,
    environ: Mapping[str, str] = os.environ,
) -> Engine:
    """Wrap `module` as `config.name` asks, and measure what the engine does. Collective.

    `build_optimizer` is called on the wrapped module. Raises ConfigError when the engine asked for
    does not fit the ranks or the device there are, or is not the one in force afterwards;
    EngineError when it does not reduce gradients as it promises.
    """
    _check_device(precision, world)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(
            f"no parameter of {type(module.model).__name__} is to be trained: all are frozen",
            same_on_all_ranks=True,
        )
    choice = choose_engine(config, environ, world.ranks)
    shapes = {name: tuple(value.shape) for name, value in named_weights(module.model)}
    engine: Engine
    if choice.deepspeed is not None:
        model: Any = module.model
        hidden_size = getattr(model.config.get_text_config(), "hidden_size", None)
        complete = settings(choice.deepspeed.content, precision, hidden_size)
        engine = ZeroEngine(
            module,
            build_optimizer,
            complete,
            world,
            reduces_once=choice.reduces_once,
            timeout_seconds=config.timeout_seconds,
        )
    elif choice.name == "fsdp2":
        timeout = config.timeout_seconds
        engine = _fsdp2(choice, module, build_optimizer, world, timeout, precision)
    else:
        engine = _replicated(choice, module, build_optimizer, world, precision)
    engine.reason = choice.reason
    engine.shapes = shapes
    accumulates = torch.bfloat16 if precision.accumulate == "bf16" else torch.float32
    confirm_reduction_factor(engine, world, accumulates)
    return engine


def _check_device(precision: Precision, world: World) -> None:
    if precision.compute == "fp16" and world.device.type == "cpu":
        raise ConfigError(
            "precision.compute: fp16 is for GPUs, but the device is a CPU, which has no fast "
            "float16 arithmetic; set precision.compute: bf16 or fp32",
            same_on_all_ranks=True,
        )


def _replicated(
    choice: EngineChoice,
    module: ObjectiveModule,
    build_optimizer: BuildOptimizer,
    world: World,
    precision: Precision,
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
        module,
        build_optimizer,
        world,
        reduces_once=choice.reduces_once,
        autocast=LOWER.get(precision.compute),
        loss_scale=LossScale() if precision.compute == "fp16" else None,
    )


def _fsdp2(
    choice: EngineChoice,
    module: ObjectiveModule,
    build_optimizer: BuildOptimizer,
    world: World,
    timeout_seconds: float,
    precision: Precision,
) -> Engine:
    sharding = choice.sharding
    if world.ranks % sharding.replicas:
        raise ConfigError(
            f"engine.replicas: {sharding.replicas} groups cannot be formed of {world.ranks} "
            "rank(s); start a multiple of it, or choose a divisor of the ranks"
        )
    mesh = shard(module, sharding, world, timeout_seconds, LOWER.get(precision.compute))
    return FSDP2Engine(
        module,
        mesh,
        build_optimizer,
        world,
        reduces_once=choice.reduces_once,
        keeps_weights=not sharding.reshard_after_forward,
        loss_scale=LossScale() if precision.compute == "fp16" else None,
    )
