"""Rules about DeepSpeed: its JSON against this configuration, and what it cannot do exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gradacc_dist.config.deepspeed import (
    AUTO,
    BUCKETS,
    CONFIG_FILE,
    STAGES,
    USE_DEEPSPEED,
    VARIABLES,
    DeepSpeed,
    asked_for,
    launcher_values,
    value_at,
)
from gradacc_dist.config.deepspeed_keys import FIXED, USABLE
from gradacc_dist.config.deepspeed_owned import LOWER, disagreement, owned_keys, same
from gradacc_dist.config.fields import shown
from gradacc_dist.config.hints import nearest
from gradacc_dist.config.identity import flat
from gradacc_dist.config.launcher import is_on
from gradacc_dist.config.resolved import Resolved
from gradacc_dist.config.rule import Conflict, Rule, count, said, value

# DeepSpeed's schedules, and the shapes here that have their course after warm-up.
SHAPES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
ADAM_TYPES = ("adam", "adamw")
CLIPPING = "ACCELERATE_GRADIENT_CLIPPING"
MOE_CLASSES = "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES"
# The model is saved by this project, so that what this asks for does not matter.
WITHOUT_EFFECT = "zero_optimization.stage3_gather_16bit_weights_on_model_save"


def one_request(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """DeepSpeed is asked for in one place, and its JSON can be read."""
    engine = resolved.config.engine
    asked = asked_for(engine, environ)
    if asked is not None and asked.problem is not None:
        yield Conflict(asked.at, asked.problem, ("engine.deepspeed",))
    names = ("engine.name", "engine.deepspeed")
    if engine.deepspeed is not None and engine.name not in ("auto", "deepspeed"):
        message = (
            f"{said(resolved, names[1])} asks for DeepSpeed, but {said(resolved, names[0])}; set "
            "engine.name: auto, or engine.deepspeed: null"
        )
        yield Conflict(names[1], message, names)
    theirs = environ.get(CONFIG_FILE)
    if is_on(environ, USE_DEEPSPEED) and theirs and engine.deepspeed is not None:
        message = (
            f"accelerate launch names {theirs}, but {said(resolved, names[1])}; keep one: set "
            "engine.deepspeed: null, or remove deepspeed_config_file from accelerate's YAML"
        )
        yield Conflict(CONFIG_FILE, message, names)


def launcher_settings(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """What accelerate launch says besides naming a JSON is said there too, and here."""
    for asked in _readable(resolved, environ):
        for key, theirs in launcher_values(environ).items():
            in_json = value_at(asked.content, key)
            if in_json != theirs:
                message = (
                    f"accelerate launch asks for {theirs}, but {asked.source} has {key}: "
                    f"{shown(in_json)}; keep one: set it there, or leave it out at the launcher"
                )
                yield Conflict(VARIABLES[key], message, ("engine.deepspeed",))
        if is_on(environ, USE_DEEPSPEED) and environ.get(MOE_CLASSES):
            message = (
                "accelerate launch names classes of experts; name them in the JSON instead: "
                'zero_optimization: {"leaf_module": {"classes": [...]}}'
            )
            yield Conflict(MOE_CLASSES, message, ("engine.deepspeed",))


def launcher_clipping(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """One place decides about clipping, and it is optimizer.max_grad_norm."""
    field = "optimizer.max_grad_norm"
    theirs = environ.get(CLIPPING) or AUTO
    is_silent = theirs in ("none", AUTO) or not is_on(environ, USE_DEEPSPEED)
    if not is_silent and not same(theirs, value(resolved, field) or 0):
        message = (
            f"accelerate launch asks for {theirs}, but {said(resolved, field)}; change that, or "
            "leave gradient_clipping out of accelerate's configuration"
        )
        yield Conflict(CLIPPING, message, (field,))


def known_stage(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """ZeRO has four stages, and offloads only what a stage shards."""
    for asked in _readable(resolved, environ):
        stage = asked.stage
        if type(stage) is not int or stage not in STAGES:
            yield _conflict(
                asked,
                f"zero_optimization.stage: {shown(stage)} is not a stage of ZeRO; needs the number "
                "0, 1 (optimizer state is sharded), 2 (gradients too) or 3 (weights too)",
            )
            continue
        for what, least in (("offload_optimizer", 1), ("offload_param", 3)):
            device = value_at(asked.content, f"zero_optimization.{what}.device")
            if device not in (None, "none", AUTO) and stage < least:
                yield _conflict(
                    asked,
                    f"zero_optimization.{what}.device: {shown(device)} does nothing under "
                    f"ZeRO-{stage}; remove the block, or use stage {least}",
                )
            elif device == "nvme":
                yield _conflict(
                    asked,
                    f"zero_optimization.{what}.device: nvme is not offered: no test shows that it "
                    "gives the same gradients; use cpu",
                )


def usable_keys(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """A key that DeepSpeed does not know, or that would change the result; blocks are objects."""
    for asked in _readable(resolved, environ):
        for block, names in USABLE.items():
            content = value_at(asked.content, block) if block else asked.content
            if not isinstance(content, Mapping):
                if content not in (None, AUTO):
                    yield _conflict(
                        asked, f"{block}: {shown(content)} is not an object; write {{...}}"
                    )
                continue
            for name in content:
                if name not in names and not name.startswith("_"):
                    key = f"{block}.{name}" if block else name
                    likely = nearest(name, names)
                    meant = f", or did you mean {likely[0]}?" if likely else ""
                    yield _conflict(asked, f"{key}: a key without use here; remove it{meant}")


def fixed_values(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """What the result relies on is left as it is."""
    for asked in _readable(resolved, environ):
        for key, (needed, reason) in FIXED.items():
            theirs = value_at(asked.content, key)
            if theirs not in (None, AUTO, needed):
                yield _conflict(
                    asked,
                    f"{key}: {shown(theirs)} is not possible: {reason}; remove the key or set it "
                    f"to {shown(needed)}",
                )


def owned_values(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """One source of truth: a key this project owns is absent, "auto", or says the same."""
    ranks = count(environ, "WORLD_SIZE")
    for asked in _readable(resolved, environ):
        for owned in owned_keys(resolved, ranks):
            theirs = value_at(asked.content, owned.key)
            if theirs not in (None, AUTO) and not same(theirs, owned.ours):
                yield _conflict(asked, disagreement(resolved, owned, theirs, ranks), owned.field)


def optimizer_type(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """The JSON may name DeepSpeed's own Adam, in place of torch's AdamW."""
    for asked in _readable(resolved, environ):
        kind = value_at(asked.content, "optimizer.type")
        is_adam = str(kind).lower() in ADAM_TYPES and resolved.config.optimizer.name == "adamw"
        if isinstance(asked.content.get("optimizer"), Mapping) and not is_adam:
            yield _conflict(
                asked,
                f"optimizer.type: {shown(kind)} conflicts with "
                f"{said(resolved, 'optimizer.name')}; only Adam or AdamW can be named there, with "
                "optimizer.name: adamw; otherwise remove the block",
                "optimizer.name",
            )


def scheduler_type(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """The section schedule decides the learning rate; the JSON may only say the same."""
    schedule = resolved.config.schedule
    for asked in _readable(resolved, environ):
        kind = value_at(asked.content, "scheduler.type")
        shape = SHAPES.get(str(kind))
        if not isinstance(asked.content.get("scheduler"), Mapping):
            continue
        if shape != schedule.shape:
            change = f"set schedule.shape: {shape}" if shape else "choose WarmupLR (constant), "
            change += "" if shape else "WarmupDecayLR (linear) or WarmupCosineLR (cosine)"
            yield _conflict(
                asked,
                f"scheduler.type: {shown(kind)} conflicts with "
                f"{said(resolved, 'schedule.shape')}; remove the block, or {change}",
                "schedule.shape",
            )
        elif kind == "WarmupDecayLR" and schedule.final_fraction != 0:
            yield _conflict(
                asked,
                f"scheduler.type: {shown(kind)} ends at 0, but "
                f"{said(resolved, 'schedule.final_fraction')}; remove the block, or set "
                "schedule.final_fraction: 0",
                "schedule.final_fraction",
            )


def resolvable(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """ "auto" where nobody knows what it stands for."""
    known = {owned.key for owned in owned_keys(resolved, 1)} | {*FIXED, *VARIABLES, WITHOUT_EFFECT}
    known |= {f"zero_optimization.{name}" for name in BUCKETS}
    for asked in _readable(resolved, environ):
        for key, theirs in flat(asked.content).items():
            if theirs == AUTO and key not in known:
                yield _conflict(
                    asked, f'{key}: "auto" has no meaning here; give a value or remove the key'
                )


def exact_precision(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """What DeepSpeed computes in another format than asked for, or accumulates in a lower one."""
    compute = resolved.config.precision.compute
    for asked in _readable(resolved, environ):
        precise = said(resolved, "precision.compute")
        if compute == "fp64":
            yield _conflict(
                asked,
                f"DeepSpeed cannot compute in float64 ({precise}): ZeRO-1 would silently use "
                "float32; set precision.compute: fp32, or engine.name: ddp or fsdp2",
                "precision.compute",
            )
        elif compute in LOWER and asked.stage == 0:
            yield _conflict(
                asked,
                f"ZeRO-0 accumulates in {compute} ({precise}); use ZeRO stage 1, or engine.name: "
                "ddp, which keep fp32",
                "precision.compute",
            )


def when_to_reduce(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """What engine.reduce can be under each stage and precision."""
    reduce = resolved.config.engine.reduce
    precision = resolved.config.precision
    for asked in _readable(resolved, environ):
        if reduce == "micro_batch" and asked.stage in (0, 1):
            yield _conflict(
                asked,
                f"{said(resolved, 'engine.reduce')} has no use under ZeRO-{asked.stage}, which "
                "holds all gradients anyway; set engine.reduce: auto, or use ZeRO stage 2",
                "engine.reduce",
            )
        if reduce == "window" and asked.stage in (2, 3) and precision.compute in LOWER:
            if (precision.compute, precision.accumulate) == ("bf16", "bf16"):
                continue
            remedy = " or precision.accumulate: bf16" if precision.compute == "bf16" else ""
            yield _conflict(
                asked,
                f"{said(resolved, 'engine.reduce')} would accumulate in {precision.compute} under "
                f"ZeRO-{asked.stage}, whatever DeepSpeed is told; set engine.reduce: "
                f"micro_batch{remedy}",
                "engine.reduce",
            )


def accumulation_format(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """Only DeepSpeed, in bf16, accumulates in less than fp32."""
    field = "precision.accumulate"
    is_offered = asked_for(resolved.config.engine, environ) is not None
    compute = resolved.config.precision.compute
    if value(resolved, field) == "bf16" and not (is_offered and compute == "bf16"):
        message = (
            f"{said(resolved, field)} is a setting of DeepSpeed with precision.compute: bf16, but "
            f"{said(resolved, 'precision.compute')} and DeepSpeed is "
            f"{'' if is_offered else 'not '}the engine; set {field}: fp32"
        )
        yield Conflict(field, message, (field, "precision.compute"))


def _readable(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[DeepSpeed]:
    asked = asked_for(resolved.config.engine, environ)
    if asked is not None and asked.problem is None:
        yield asked


def _conflict(asked: DeepSpeed, message: str, *fields: str) -> Conflict:
    return Conflict(asked.at, f"{asked.source}: {message}", ("engine.deepspeed", *fields))


DEEPSPEED_RULES: tuple[Rule, ...] = (
    one_request,
    launcher_settings,
    launcher_clipping,
    known_stage,
    usable_keys,
    fixed_values,
    owned_values,
    optimizer_type,
    scheduler_type,
    resolvable,
    exact_precision,
    when_to_reduce,
    accumulation_format,
)
