"""Rules about the engine: between its settings, the ranks, and what `accelerate launch` asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gradacc_dist.config.deepspeed_rules import DEEPSPEED_RULES
from gradacc_dist.config.engine import FSDP2_FIELDS, choose_engine
from gradacc_dist.config.fields import fields
from gradacc_dist.config.inline import inline
from gradacc_dist.config.launcher import (
    ENGINE_VARIABLES,
    LAUNCH,
    asks_for_fsdp,
    fsdp_wishes,
    is_on,
)
from gradacc_dist.config.resolved import Resolved
from gradacc_dist.config.rule import Conflict, Rule, count, said, value


def one_rank(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """The single engine knows no other rank."""
    ranks = count(environ, "WORLD_SIZE")
    if resolved.config.engine.name == "single" and ranks > 1:
        message = (
            f"{said(resolved, 'engine.name')} runs one rank, but WORLD_SIZE={ranks} "
            "(environment); set engine.name: auto, or start one process, without a launcher"
        )
        yield Conflict("engine.name", message, ("engine.name",))


def several_ranks(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """DDP on one rank is most likely a launcher that was forgotten."""
    if resolved.config.engine.name == "ddp" and count(environ, "WORLD_SIZE") <= 1:
        message = (
            f"{said(resolved, 'engine.name')} needs several ranks, but WORLD_SIZE is "
            f"{environ.get('WORLD_SIZE') or 'unset'} (environment); start with `{LAUNCH} 2 -m ...`,"
            " or set engine.name: auto"
        )
        yield Conflict("engine.name", message, ("engine.name",))


def launcher_engine(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """The engine that accelerate was launched for is the one that runs."""
    for variable, engine in ENGINE_VARIABLES.items():
        if not is_on(environ, variable):
            continue
        ours = {"FSDP": "fsdp2", "DeepSpeed": "deepspeed"}.get(engine)
        if ours is None:
            legal = ", ".join(fields()["engine.name"].choices())
            message = (
                f"accelerate launch asks for {engine}, but there is no such engine: engine.name "
                f"can be {legal}; launch with `{LAUNCH} N` (distributed_type: MULTI_GPU in "
                "accelerate's YAML)"
            )
            yield Conflict(variable, message, ("engine.name",))
        elif resolved.config.engine.name not in ("auto", ours):
            message = (
                f"accelerate launch asks for {engine}, but {said(resolved, 'engine.name')}; set "
                f"engine.name: auto or {ours}, or launch with `{LAUNCH} N` (distributed_type: "
                "MULTI_GPU in accelerate's YAML)"
            )
            yield Conflict(variable, message, ("engine.name",))
        elif ours == "fsdp2" and resolved.config.engine.deepspeed is not None:
            message = (
                f"accelerate launch asks for {engine}, but {said(resolved, 'engine.deepspeed')}; "
                f"set it to null, or launch with `{LAUNCH} N`"
            )
            yield Conflict(variable, message, ("engine.deepspeed",))


def fsdp_version(_resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """accelerate launches FSDP version 1 unless told otherwise; the engine is version 2."""
    version = environ.get("FSDP_VERSION") or "1, accelerate's default"
    if asks_for_fsdp(environ) and version != "2":
        at = "FSDP_VERSION" if environ.get("FSDP_VERSION") else "ACCELERATE_USE_FSDP"
        message = (
            f"accelerate launch asks for FSDP version {version}, but the engine is FSDP version 2; "
            "launch with --fsdp_version 2 (fsdp_config: {fsdp_version: 2} in accelerate's YAML)"
        )
        yield Conflict(at, message, ("engine.name",))


# Variable, the values that are no wish, and what to do about another.
_NOT_OFFERED = (
    ("FSDP_AUTO_WRAP_POLICY", ("", "transformer_based_wrap", "no_wrap"), "TRANSFORMER_BASED_WRAP"),
    ("FSDP_ACTIVATION_CHECKPOINTING", ("", "false"), "false"),
    ("FSDP_IGNORED_MODULES", ("", "none"), "nothing"),
    ("PARALLELISM_CONFIG_TP_SIZE", ("", "1"), "1"),
    ("PARALLELISM_CONFIG_CP_SIZE", ("", "1"), "1"),
    ("PARALLELISM_CONFIG_SP_SIZE", ("", "1"), "1"),
)


def fsdp_not_offered(_resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """accelerate's FSDP settings that would change nothing here are refused, not ignored."""
    for variable, idle, remedy in _NOT_OFFERED if asks_for_fsdp(environ) else ():
        text = environ.get(variable, "")
        if text.lower() not in idle:
            message = (
                f"accelerate launch asks for {text}, which the FSDP2 engine does not offer yet; "
                f"set it to {remedy} in accelerate's configuration"
            )
            yield Conflict(variable, message, ("engine.name",))


def fsdp_wish(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """Said by both accelerate's configuration and ours, a setting says the same."""
    for name, wish in fsdp_wishes(environ).items():
        field = f"engine.{name}"
        ours = value(resolved, field)
        if ours is not None and ours != wish.value:
            message = (
                f"accelerate launch asks for {inline(wish.value)}, but {said(resolved, field)}; "
                f"set {field} to null to take accelerate's, or remove it there"
            )
            yield Conflict(wish.variable, message, (field,))


def fsdp_only(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """A setting of FSDP2 under another engine would do nothing."""
    choice = choose_engine(resolved.config.engine, environ, count(environ, "WORLD_SIZE"))
    for name in FSDP2_FIELDS if choice.name != "fsdp2" else ():
        field = f"engine.{name}"
        if value(resolved, field) is not None:
            message = (
                f"{said(resolved, field)} is a setting of FSDP2, but the engine is {choice.name} "
                f"({choice.reason}); set engine.name: fsdp2, or {field} to null"
            )
            yield Conflict(field, message, ("engine.name", field))


def whole_replicas(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """Hybrid sharding needs groups of equally many ranks."""
    ranks = count(environ, "WORLD_SIZE")
    choice = choose_engine(resolved.config.engine, environ, ranks)
    replicas = choice.sharding.replicas
    if choice.name == "fsdp2" and ranks % replicas:
        wish = fsdp_wishes(environ).get("replicas")
        message = (
            f"engine.replicas: {replicas} groups cannot be formed of {ranks} rank(s) "
            "(WORLD_SIZE, environment); start a multiple of it, or choose a divisor of the ranks"
        )
        at = wish.variable if wish and resolved.config.engine.replicas is None else None
        yield Conflict(at or "engine.replicas", message, ("engine.replicas",))


ENGINE_RULES: tuple[Rule, ...] = (
    one_rank,
    several_ranks,
    launcher_engine,
    fsdp_version,
    fsdp_not_offered,
    fsdp_wish,
    fsdp_only,
    whole_replicas,
    *DEEPSPEED_RULES,
)
