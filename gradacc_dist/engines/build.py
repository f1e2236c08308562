"""From a setting to an engine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gradacc_dist.config.schema import Engine as EngineConfig
from gradacc_dist.engines.engine import Engine
from gradacc_dist.engines.replicated import ReplicatedEngine
from gradacc_dist.errors import ConfigError
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.world import World


def build_engine(
    config: EngineConfig,
    module: ObjectiveModule,
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    world: World,
) -> Engine:
    """Wrap `module` as `config.name` asks. Collective.

    `build_optimizer` is called on the wrapped module. Raises ConfigError when the engine asked for
    does not fit the ranks there are, or is not the one in force afterwards.
    """
    name = config.name
    if name == "auto":
        name = "single" if world.ranks == 1 else "ddp"
    if (name == "single") != (world.ranks == 1):
        raise ConfigError(
            f"engine.name: {name} does not fit {world.ranks} rank(s); use auto, or start "
            + ("one process" if name == "single" else "several with accelerate launch or torchrun")
        )
    module.to(world.device)
    return ReplicatedEngine(module, build_optimizer, world)
