"""Which engine runs, and how: decided from the configuration, the launcher and the ranks alone.

A pure function, so that `--check` and the launcher can say it before a process starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradacc_dist.config.deepspeed import DeepSpeed, asked_for
from gradacc_dist.config.launcher import asks_for_fsdp, fsdp_wishes
from gradacc_dist.config.schema import Engine

FSDP2_FIELDS = ("replicas", "wrap", "reshard_after_forward", "offload")
FSDP2_DEFAULTS = {"replicas": 1, "wrap": None, "reshard_after_forward": True, "offload": False}


@dataclass(frozen=True)
class Sharding:
    """How FSDP2 shards. `wrap`: classes of the blocks, () the model as one, None the model's own.

    Over `replicas` groups of equally many ranks; each group holds the whole model.
    """

    replicas: int
    wrap: tuple[str, ...] | None
    reshard_after_forward: bool
    offload: bool


@dataclass(frozen=True)
class EngineChoice:
    """The engine that runs. `reason`: why this one. `reduces_once`: per window, not micro-batch.

    `sharding` is of FSDP2, `deepspeed` of DeepSpeed.
    """

    name: str
    reason: str
    reduces_once: bool
    sharding: Sharding
    deepspeed: DeepSpeed | None


def choose_engine(config: Engine, environ: Mapping[str, str], ranks: int) -> EngineChoice:
    """What `config` amounts to on `ranks` ranks, where the rules found no conflict."""
    deepspeed = asked_for(config, environ)
    name, reason = _name(config, environ, ranks, deepspeed)
    once = config.reduce == "window"
    if config.reduce == "auto":
        # Where gradients are sharded, whole ones for a window would cost the memory that it saves.
        is_sharded = name == "fsdp2" or (deepspeed is not None and deepspeed.stage in (2, 3))
        once = not is_sharded
    return EngineChoice(name, reason, once, _sharding(config, environ), deepspeed)


def _name(
    config: Engine, environ: Mapping[str, str], ranks: int, deepspeed: DeepSpeed | None
) -> tuple[str, str]:
    if deepspeed is not None:
        who = "accelerate launch" if deepspeed.at.startswith("ACCELERATE") else deepspeed.at
        where = "" if deepspeed.source in (who, deepspeed.at) else f" ({deepspeed.source})"
        return "deepspeed", f"{who} asks for it{where}"
    if config.name != "auto":
        return config.name, "engine.name asks for it"
    if asks_for_fsdp(environ):
        return "fsdp2", "accelerate launch asks for FSDP"
    if ranks == 1:
        return "single", "there is one rank"
    return "ddp", f"there are {ranks} ranks and the launcher asks for no other engine"


def _sharding(config: Engine, environ: Mapping[str, str]) -> Sharding:
    asked = {field: wish.value for field, wish in fsdp_wishes(environ).items()}
    said = {name: getattr(config, name) for name in FSDP2_FIELDS}
    said = {name: value for name, value in said.items() if value is not None}
    return Sharding(**{**FSDP2_DEFAULTS, **asked, **said})
