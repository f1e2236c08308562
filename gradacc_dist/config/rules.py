"""Rules between fields, and between fields and what `accelerate launch` put in the environment.

Each rule is one pure function. A setting that conflicts is refused with both values and the
remedy; none is rewritten. Rules that need a model or a device live with what builds those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gradacc_dist.config.fields import fields, shown
from gradacc_dist.config.inline import inline
from gradacc_dist.config.resolved import Resolved

# What utils/environment.py of accelerate takes for true.
TRUE_WORDS = frozenset({"y", "yes", "t", "true", "on", "1"})
LAUNCH = "accelerate launch --multi_gpu --num_processes"


@dataclass(frozen=True)
class Conflict:
    """Values that cannot hold together. `at`: the field or variable whose place is reported."""

    at: str
    message: str
    fields: tuple[str, ...]


Rule = Callable[[Resolved, Mapping[str, str]], Iterator[Conflict]]


def one_model(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """Weights to continue from, or a configuration to start anew: one, and not both."""
    model = resolved.config.model
    both = ("model.path", "model.config")
    if model.path is not None and model.config is not None:
        message = (
            f"{_said(resolved, 'model.path')} and model.config ({resolved.source('model.config')})"
            " are both set; keep one: unset the path (null) to start anew, or unset the config "
            "(--model.config null) to continue from pretrained weights"
        )
        yield Conflict("model.path", message, both)
    if model.path is None and model.config is None:
        message = (
            f"model: there is no model: {_said(resolved, 'model.path')} and "
            f"{_said(resolved, 'model.config')}; set model.path to continue from pretrained "
            "weights, or model.config {model_type: llama, hidden_size: 256, ...} to start anew"
        )
        yield Conflict("model.path", message, both)


def model_type(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """A model built from its configuration needs to know which architecture that configures."""
    config = resolved.config.model.config
    if config is not None and not isinstance(config.get("model_type"), str):
        message = (
            f"model.config.model_type: got {shown(config.get('model_type'))}; needs the name of "
            "an architecture of transformers, e.g. llama"
        )
        yield Conflict("model.config", message, ("model.config",))


def tokenizer(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """Only pretrained weights come with a tokenizer."""
    model = resolved.config.model
    if model.config is not None and model.path is None and model.tokenizer is None:
        message = (
            f"{_said(resolved, 'model.tokenizer')}, but model.config "
            f"({resolved.source('model.config')}) brings none; set model.tokenizer to a folder, a "
            "hub name, or `embedded`"
        )
        yield Conflict("model.config", message, ("model.config", "model.tokenizer"))


def one_window_size(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """The size of the global batch is what the result depends on: said once."""
    yield from _not_both(resolved, ("window.examples", "window.supervised_tokens"))


def one_duration(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """How long to train, in windows or in passes over the data."""
    yield from _not_both(resolved, ("schedule.steps", "schedule.epochs"))


def _not_both(resolved: Resolved, names: tuple[str, str]) -> Iterator[Conflict]:
    if all(_value(resolved, name) is not None for name in names):
        said = " and ".join(_said(resolved, name) for name in names)
        yield Conflict(names[0], f"{said} are both set; keep one, set the other to null", names)


def stream_length(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """Nobody knows how many windows a pass over a stream has before it has been read."""
    if resolved.config.data.streaming and resolved.config.schedule.epochs is not None:
        names = ("schedule.epochs", "data.streaming")
        message = (
            f"{_said(resolved, names[0])} needs to know how long a pass is, but "
            f"{_said(resolved, names[1])} reads data that nobody has counted; set schedule.steps "
            "and leave epochs out (null), or set data.streaming: false"
        )
        yield Conflict(names[0], message, names)


def stream_weights(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """A stream takes its sources one after the other, each once a pass."""
    train = resolved.config.data.train
    weights = [] if isinstance(train, str) else [share.weight for share in train]
    if resolved.config.data.streaming and any(weight != 1 for weight in weights):
        names = ("data.train", "data.streaming")
        message = (
            f"data.train ({resolved.source(names[0])}) has weights "
            f"{', '.join(f'{weight:g}' for weight in weights)}, but {_said(resolved, names[1])} "
            "reads each source once, one after the other; leave the weights out, or set "
            "data.streaming: false"
        )
        yield Conflict(names[0], message, names)


def warmup(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """Warm-up ends before training does. With epochs, only the data can tell: checked later."""
    schedule = resolved.config.schedule
    if schedule.steps is not None and schedule.warmup_steps > schedule.steps:
        names = ("schedule.warmup_steps", "schedule.steps")
        message = (
            f"{_said(resolved, names[0])} exceeds {_said(resolved, names[1])}; lower warmup_steps "
            f"to at most {schedule.steps}, or raise steps"
        )
        yield Conflict(names[0], message, names)


def one_rank(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """The single engine knows no other rank."""
    ranks = _count(environ, "WORLD_SIZE")
    if resolved.config.engine.name == "single" and ranks > 1:
        message = (
            f"{_said(resolved, 'engine.name')} runs one rank, but WORLD_SIZE={ranks} "
            "(environment); set engine.name: auto, or start one process, without a launcher"
        )
        yield Conflict("engine.name", message, ("engine.name",))


def several_ranks(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """DDP on one rank is most likely a launcher that was forgotten."""
    if resolved.config.engine.name == "ddp" and _count(environ, "WORLD_SIZE") <= 1:
        message = (
            f"{_said(resolved, 'engine.name')} needs several ranks, but WORLD_SIZE is "
            f"{environ.get('WORLD_SIZE') or 'unset'} (environment); start with `{LAUNCH} 2 -m ...`,"
            " or set engine.name: auto"
        )
        yield Conflict("engine.name", message, ("engine.name",))


def mixed_precision(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """One place decides the number format, and it is precision.compute."""
    variable = "ACCELERATE_MIXED_PRECISION"
    asked = environ.get(variable, "").lower() or "no"
    if asked not in ("no", resolved.config.precision.compute):
        legal = fields()["precision.compute"].choices()
        other = f", or set precision.compute: {asked}" if asked in legal else ""
        message = (
            f"accelerate launch asks for {asked}, but {_said(resolved, 'precision.compute')}; "
            f"launch with --mixed_precision no (mixed_precision: no in accelerate's YAML){other}"
        )
        yield Conflict(variable, message, ("precision.compute",))


def accumulation(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """The window and the micro-batch already say how much is accumulated."""
    variable = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    steps = _count(environ, variable)
    if steps > 1:
        names = ("window.examples", "micro_batch.examples")
        per_rank = steps * resolved.config.micro_batch.examples
        ranks = _count(environ, "WORLD_SIZE")
        message = (
            f"accelerate launch asks for {steps} accumulation steps, but accumulation is derived: "
            f"{_said(resolved, names[0])} / ({ranks} ranks x {_said(resolved, names[1])}); launch "
            "with --gradient_accumulation_steps 1 and, to keep yours, set "
            f"window.examples: {per_rank * ranks}"
        )
        yield Conflict(variable, message, names)


def launcher_engine(_resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """An engine that accelerate would wrap by itself, and that does not exist here yet."""
    names = {
        "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
        "ACCELERATE_USE_FSDP": "FSDP",
        "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    }
    for variable, engine in names.items():
        if environ.get(variable, "").lower() in TRUE_WORDS:
            legal = ", ".join(fields()["engine.name"].choices())
            message = (
                f"accelerate launch asks for {engine}, but there is no such engine yet: "
                f"engine.name can be {legal}; launch with `{LAUNCH} N` (distributed_type: "
                "MULTI_GPU in accelerate's YAML)"
            )
            yield Conflict(variable, message, ("engine.name",))


RULES: tuple[Rule, ...] = (
    one_model,
    model_type,
    tokenizer,
    one_window_size,
    one_duration,
    stream_length,
    stream_weights,
    warmup,
    one_rank,
    several_ranks,
    mixed_precision,
    accumulation,
    launcher_engine,
)


def conflicts(resolved: Resolved, environ: Mapping[str, str]) -> list[Conflict]:
    """Everything that any rule objects to."""
    return [conflict for rule in RULES for conflict in rule(resolved, environ)]


def _said(resolved: Resolved, path: str) -> str:
    return f"{path}: {inline(_value(resolved, path))} ({resolved.source(path)})"


def _value(resolved: Resolved, path: str) -> object:
    section, _, name = path.partition(".")
    return getattr(getattr(resolved.config, section), name)


def _count(environ: Mapping[str, str], variable: str) -> int:
    """A count from the environment; 1 where it is unset or, like DeepSpeed's `auto`, no number."""
    text = environ.get(variable, "")
    return int(text) if text.isdecimal() else 1
