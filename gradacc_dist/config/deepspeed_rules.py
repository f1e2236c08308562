"""Rules about DeepSpeed: its JSON against this configuration, and what it cannot do exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gradacc_dist.config.deepspeed import (
    AUTO,
    BUCKETS,
    CONFIG_FILE,
    FORGOTTEN,
    STAGES,
    USE_DEEPSPEED,
    DeepSpeed,
    asked_for,
    leaves_of,
    value_at,
)
from gradacc_dist.config.launcher import is_on
from gradacc_dist.config.resolved import Resolved
from gradacc_dist.config.rule import Conflict, Rule, count, said, turns, value

# DeepSpeed's schedules, and the shapes here that have their course after warm-up.
SHAPES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
ADAM_TYPES = ("adam", "adamw")
LOWER = ("bf16", "fp16")


@dataclass(frozen=True)
class Owned:
    """A key of the JSON that `field` decides here; `ours` is the only value it may have."""

    key: str
    ours: Any
    field: str


def owned_keys(resolved: Resolved, ranks: int) -> Iterator[Owned]:
    """Every key of a DeepSpeed JSON that this configuration decides. `ours` None: no value can."""
    config = resolved.config
    micro_batch, window = config.micro_batch.examples, config.window.examples
    size = "window.supervised_tokens" if window is None else "window.examples"
    yield Owned("train_micro_batch_size_per_gpu", micro_batch, "micro_batch.examples")
    yield Owned("train_batch_size", window, size)
    yield Owned("gradient_accumulation_steps", turns(resolved, ranks), size)
    optimizer, schedule = config.optimizer, config.schedule
    yield Owned("gradient_clipping", optimizer.max_grad_norm or 0, "optimizer.max_grad_norm")
    for compute in LOWER:
        enabled = config.precision.compute == compute
        yield Owned(f"{compute}.enabled", enabled, "precision.compute")
    for switch in ("amp.enabled", "torch_autocast.enabled"):
        yield Owned(switch, False, "precision.compute")
    yield Owned("data_types.grad_accum_dtype", config.precision.accumulate, "precision.accumulate")
    yield Owned("optimizer.params.lr", optimizer.learning_rate, "optimizer.learning_rate")
    yield Owned("optimizer.params.betas", list(optimizer.betas), "optimizer.betas")
    yield Owned("optimizer.params.eps", optimizer.eps, "optimizer.eps")
    yield Owned("optimizer.params.weight_decay", optimizer.weight_decay, "optimizer.weight_decay")
    yield Owned("optimizer.params.adam_w_mode", True, "optimizer.name")
    yield Owned("scheduler.params.warmup_min_lr", 0, "schedule.warmup_steps")
    rate = optimizer.learning_rate
    yield Owned("scheduler.params.warmup_max_lr", rate, "optimizer.learning_rate")
    yield Owned("scheduler.params.warmup_num_steps", schedule.warmup_steps, "schedule.warmup_steps")
    yield Owned("scheduler.params.warmup_type", "linear", "schedule.shape")
    steps = "schedule.epochs" if schedule.steps is None else "schedule.steps"
    yield Owned("scheduler.params.total_num_steps", schedule.steps, steps)


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


def known_stage(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """ZeRO has four stages."""
    for asked in _readable(resolved, environ):
        if asked.stage not in STAGES or isinstance(asked.stage, bool):
            yield _conflict(
                asked,
                f"zero_optimization.stage: {json.dumps(asked.stage)} is not a stage of ZeRO; needs "
                "0, 1 (optimizer state is sharded), 2 (gradients too) or 3 (weights too)",
            )


def owned_values(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """One source of truth: a key this project owns is absent, "auto", or says the same."""
    for asked in _readable(resolved, environ):
        for owned in owned_keys(resolved, count(environ, "WORLD_SIZE")):
            theirs = value_at(asked.content, owned.key)
            if theirs not in (None, AUTO) and not _same(theirs, owned.ours):
                yield _conflict(asked, _disagreement(resolved, owned, theirs), owned.field)


def optimizer_type(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """The JSON may name DeepSpeed's own Adam, in place of torch's AdamW."""
    for asked in _readable(resolved, environ):
        kind = value_at(asked.content, "optimizer.type")
        is_adam = str(kind).lower() in ADAM_TYPES and resolved.config.optimizer.name == "adamw"
        if "optimizer" in asked.content and not is_adam:
            yield _conflict(
                asked,
                f"optimizer.type: {json.dumps(kind)} conflicts with "
                f"{said(resolved, 'optimizer.name')}; only Adam or AdamW can be named there, with "
                "optimizer.name: adamw; otherwise remove the block",
                "optimizer.name",
            )


def scheduler_type(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """The section schedule decides the learning rate; the JSON may only say the same."""
    for asked in _readable(resolved, environ):
        kind = value_at(asked.content, "scheduler.type")
        if "scheduler" in asked.content and SHAPES.get(kind) != resolved.config.schedule.shape:
            likely = f" (that is schedule.shape: {SHAPES[kind]})" if kind in SHAPES else ""
            yield _conflict(
                asked,
                f"scheduler.type: {json.dumps(kind)}{likely} conflicts with "
                f"{said(resolved, 'schedule.shape')}; remove the block, or change the field",
                "schedule.shape",
            )


def resolvable(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """ "auto" where nobody knows what it stands for."""
    known = {owned.key for owned in owned_keys(resolved, 1)}
    known |= {f"zero_optimization.{name}" for name in (*BUCKETS, *FORGOTTEN)}
    for asked in _readable(resolved, environ):
        for key, theirs in leaves_of(asked.content):
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


def _disagreement(resolved: Resolved, owned: Owned, theirs: Any) -> str:
    field = said(resolved, owned.field)
    if owned.ours is None:
        ours = f"{field}, from which it follows window by window"
    elif owned.key == "gradient_accumulation_steps":
        micro_batch = said(resolved, "micro_batch.examples")
        ours = f"{owned.ours}, which follows from {field}, {micro_batch} and the ranks"
    else:
        ours = field
    return (
        f"{owned.key}: {json.dumps(theirs)} conflicts with {ours}; remove the key or set it to "
        '"auto", or change the field'
    )


def _same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) == len(ours) and all(map(_same, theirs, ours))
    # True == 1 in Python.
    return bool(isinstance(theirs, bool) == isinstance(ours, bool) and theirs == ours)


DEEPSPEED_RULES: tuple[Rule, ...] = (
    one_request,
    known_stage,
    owned_values,
    optimizer_type,
    scheduler_type,
    resolvable,
    exact_precision,
    when_to_reduce,
    accumulation_format,
)
