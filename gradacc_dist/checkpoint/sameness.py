"""Whether a checkpoint belongs to the run that is about to go on from it.

A run is a function of its deciding fields, its data and its seed. What differs between those of
the checkpoint and those of now is refused, all at once, unless `run.allow_change` names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.config.fields import nested
from gradacc_dist.config.identity import flat, identity
from gradacc_dist.config.schema import Config
from gradacc_dist.errors import ConfigError
from gradacc_dist.optim import learning_rate

# How long a run is may be said in two ways, and may change: the learning rates decide.
DURATION = frozenset({"schedule.steps", "schedule.epochs"})

# Where data and tokenizer lie: the hashes tell whether they are the same.
TRAIN_PLACES = frozenset({"data.train", "data.chat_template", "model.tokenizer"})
HELD_OUT_PLACES = frozenset({"data.evaluate"})

# What decides both hashes beside the rows themselves.
HASHED = frozenset(
    {
        *("data.max_length", "data.supervise", "data.streaming", "data.chat_template"),
        *("model.path", "model.tokenizer"),
    }
)

ABSENT = object()


@dataclass(frozen=True)
class Identity:
    """What a run is. `held_out_sha256`: None where nothing is held out."""

    fields: Mapping[str, object]
    data_sha256: str
    held_out_sha256: str | None
    num_steps: int


@dataclass(frozen=True)
class Difference:
    """Two values of one leaf. `at`: the leaf, which run.allow_change may name."""

    at: str
    text: str

    def is_allowed(self, allowed: Sequence[str]) -> bool:
        """Whether the leaf or what it lies in is listed."""
        parts = self.at.split(".")
        return any(".".join(parts[:end]) in allowed for end in range(1, len(parts) + 1))


def allowed_changes(
    config: Config, now: Identity, saved: RunState, folder: Path
) -> list[Difference]:
    """What differs and is allowed to. The same on every rank.

    Raises ConfigError that lists every difference that is not.
    """
    found = [*_field_differences(now, saved), *_duration_difference(config, now, saved)]
    found += _hash_differences(now, saved, {difference.at for difference in found})
    allowed = config.run.allow_change
    refused = [difference for difference in found if not difference.is_allowed(allowed)]
    if refused:
        names = ", ".join(dict.fromkeys([*allowed, *(difference.at for difference in refused)]))
        raise ConfigError(
            f"{folder} is of another run; here against there:\n"
            + "\n".join(f"- {difference.text}" for difference in refused)
            + "\nSet the values of that run to continue it, or change the run from here on with "
            f"--run.allow_change '[{names}]'",
            same_on_all_ranks=True,
        )
    if now.num_steps < saved.step:
        raise ConfigError(
            f"schedule: {now.num_steps} steps, but {folder} is at step {saved.step} already; "
            "continue from an earlier checkpoint (run.resume: its path), or raise schedule.steps",
            same_on_all_ranks=True,
        )
    return [difference for difference in found if difference.is_allowed(allowed)]


def same_fields(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Whether two runs are the same as far as their fields tell, but for their duration."""
    ours, theirs = flat(one), flat(other)
    names = (ours.keys() | theirs.keys()) - DURATION
    return all(ours.get(name, ABSENT) == theirs.get(name, ABSENT) for name in names)


def _field_differences(now: Identity, saved: RunState) -> list[Difference]:
    ours = flat(now.fields)
    # A field that is newer than the checkpoint had its default.
    theirs = flat({**_newer_fields(saved.identity), **saved.identity})
    same = TRAIN_PLACES if now.data_sha256 == saved.data_sha256 else frozenset()
    if ours.get("data.streaming"):  # whose hash does not know the rows
        same = same - {"data.train"}
    if now.held_out_sha256 == saved.held_out_sha256:
        same = same | HELD_OUT_PLACES
    return [
        Difference(name, f"{name}: {_shown(ours, name)} | {_shown(theirs, name)}")
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name, ABSENT) != theirs.get(name, ABSENT)
        and name not in DURATION
        and not _is_in(name, same)
    ]


def _newer_fields(fields: Mapping[str, object]) -> dict[str, object]:
    defaults = identity(Config())
    known = {".".join(name.split(".")[:2]) for name in fields}
    return {name: value for name, value in defaults.items() if name not in known}


def _is_in(name: str, fields: frozenset[str]) -> bool:
    return ".".join(name.split(".")[:2]) in fields


def _hash_differences(now: Identity, saved: RunState, named: set[str]) -> list[Difference]:
    """Other contents under the same names; where the names differ too, they are told already."""
    pairs = (
        ("data.train", now.data_sha256, saved.data_sha256, TRAIN_PLACES | HASHED),
        ("data.evaluate", now.held_out_sha256, saved.held_out_sha256, HELD_OUT_PLACES | HASHED),
    )
    return [
        Difference(at, f"{at}: other contents, SHA-256 {str(ours)[:12]} | {str(theirs)[:12]}")
        for at, ours, theirs, explained_by in pairs
        if ours != theirs and not any(_is_in(name, explained_by) for name in named)
    ]


def _duration_difference(config: Config, now: Identity, saved: RunState) -> list[Difference]:
    """Another number of steps, where the rates of the steps already made would be others."""
    if now.num_steps == saved.num_steps or not saved.num_updates:
        return []
    then = Config.model_validate(
        nested({name: v for name, v in saved.identity.items() if name.startswith("schedule.")})
    ).schedule
    shape = config.schedule.shape
    for update in range(saved.num_updates):
        ours = learning_rate(config.optimizer, config.schedule, now.num_steps, update)
        theirs = learning_rate(config.optimizer, then, saved.num_steps, update)
        if ours != theirs:
            at = "schedule.epochs" if config.schedule.epochs is not None else "schedule.steps"
            text = (
                f"{at}: {now.num_steps} steps | {saved.num_steps} steps: under shape {shape} step "
                f"{update + 1} has the learning rate {ours:.6g} | {theirs:.6g}; only constant, and "
                "warmup_stable_decay before its decay, can be prolonged as if they had been longer "
                "from the start"
            )
            return [Difference(at, text)]
    return []


def _shown(leaves: Mapping[str, object], name: str) -> str:
    return json.dumps(leaves[name]) if name in leaves else "not set"
