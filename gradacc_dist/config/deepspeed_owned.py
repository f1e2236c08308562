"""The keys of a DeepSpeed JSON that this configuration decides, and values that disagree."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gradacc_dist.config.fields import accepts, shown
from gradacc_dist.config.inline import inline
from gradacc_dist.config.resolved import Resolved
from gradacc_dist.config.rule import said, turns

LOWER = ("bf16", "fp16")


def _same_value(theirs: Any) -> object:
    return theirs


@dataclass(frozen=True)
class Owned:
    """A key of the JSON that `field` decides here; `ours` is the only value it may have.

    `ours` None: the field leaves the number open. `meant`: the value of the field that would agree
    with what the JSON says.
    """

    key: str
    ours: Any
    field: str
    meant: Callable[[Any], object] = _same_value


def owned_keys(resolved: Resolved, ranks: int) -> Iterator[Owned]:
    """Every key of a DeepSpeed JSON that this configuration decides."""
    config = resolved.config
    micro_batch, window = config.micro_batch.examples, config.window.examples
    size = "window.supervised_tokens" if window is None else "window.examples"
    yield Owned("train_micro_batch_size_per_gpu", micro_batch, "micro_batch.examples")
    yield Owned("train_batch_size", window, size)

    def to_window(theirs: Any) -> object:
        return theirs * micro_batch * ranks if type(theirs) is int else theirs

    yield Owned("gradient_accumulation_steps", turns(resolved, ranks), size, to_window)
    optimizer, schedule = config.optimizer, config.schedule
    clipping = optimizer.max_grad_norm or 0
    yield Owned("gradient_clipping", clipping, "optimizer.max_grad_norm", _clipping)
    compute = config.precision.compute
    for name in LOWER:
        yield Owned(f"{name}.enabled", compute == name, "precision.compute", _format(name))
    yield Owned("data_types.grad_accum_dtype", config.precision.accumulate, "precision.accumulate")
    rate = optimizer.learning_rate
    yield Owned("optimizer.params.lr", rate, "optimizer.learning_rate")
    yield Owned("optimizer.params.betas", list(optimizer.betas), "optimizer.betas")
    yield Owned("optimizer.params.eps", optimizer.eps, "optimizer.eps")
    yield Owned("optimizer.params.weight_decay", optimizer.weight_decay, "optimizer.weight_decay")
    yield Owned("scheduler.params.warmup_max_lr", rate, "optimizer.learning_rate")
    yield Owned("scheduler.params.warmup_num_steps", schedule.warmup_steps, "schedule.warmup_steps")
    lowest = schedule.final_fraction
    yield Owned("scheduler.params.cos_min_ratio", lowest, "schedule.final_fraction")
    steps = "schedule.epochs" if schedule.steps is None else "schedule.steps"
    yield Owned("scheduler.params.total_num_steps", schedule.steps, steps)


def _clipping(theirs: Any) -> object:
    return None if theirs == 0 else theirs


def _format(name: str) -> Callable[[Any], object]:
    def meant(theirs: Any) -> object:
        return {"true": name, "false": "fp32"}.get(json.dumps(theirs), theirs)

    return meant


def disagreement(resolved: Resolved, owned: Owned, theirs: Any, ranks: int) -> str:
    """Both values, where ours comes from, and what to do."""
    ours, remedy = said(resolved, owned.field), 'remove the key or set it to "auto"'
    if owned.ours is None:
        return f"{owned.key}: {shown(theirs)} conflicts with {ours}, which leaves it open; {remedy}"
    if owned.key == "gradient_accumulation_steps":
        micro_batch = said(resolved, "micro_batch.examples")
        ours = f"{owned.ours}, which follows from {ours}, {micro_batch} and {ranks} rank(s)"
    meant = owned.meant(_unquoted(theirs))
    is_legal = not isinstance(meant, bool) and accepts(owned.field, meant)
    change = f"set {owned.field}: {inline(meant)}" if is_legal else f"change {owned.field}"
    return f"{owned.key}: {shown(theirs)} conflicts with {ours}; {remedy}, or {change}"


def same(theirs: Any, ours: Any) -> bool:
    """Whether a value says what ours says, quoted or not (C1): these are not handed on."""
    theirs = _unquoted(theirs)
    # True == 1 in Python.
    return bool(isinstance(theirs, bool) == isinstance(ours, bool) and theirs == ours)


def _unquoted(value: Any) -> Any:
    if isinstance(value, list):
        return [_unquoted(item) for item in value]
    try:
        return json.loads(value.lower()) if isinstance(value, str) else value
    except ValueError:
        return value
