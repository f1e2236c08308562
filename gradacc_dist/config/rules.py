"""Rules between fields, and between fields and what `accelerate launch` put in the environment.

Each rule is one pure function. A setting that conflicts is refused with both values and the
remedy; none is rewritten. Rules that need a model or a device live with what builds those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata

from gradacc_dist.config.engine_rules import ENGINE_RULES
from gradacc_dist.config.fields import fields, owner, sections, shown
from gradacc_dist.config.hints import nearest
from gradacc_dist.config.resolved import Resolved
from gradacc_dist.config.rule import Conflict, Rule, count, said, turns, value


def one_model(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """Weights to continue from, or a configuration to start anew: one, and not both."""
    model = resolved.config.model
    both = ("model.path", "model.config")
    if model.path is not None and model.config is not None:
        message = (
            f"{said(resolved, 'model.path')} and model.config ({resolved.source('model.config')})"
            " are both set; keep one: unset the path (null) to start anew, or unset the config "
            "(--model.config null) to continue from pretrained weights"
        )
        yield Conflict("model.path", message, both)
    if model.path is None and model.config is None:
        message = (
            f"model: there is no model: {said(resolved, 'model.path')} and "
            f"{said(resolved, 'model.config')}; set model.path to continue from pretrained "
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
            f"{said(resolved, 'model.tokenizer')}, but model.config "
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
    if all(value(resolved, name) is not None for name in names):
        both = " and ".join(said(resolved, name) for name in names)
        yield Conflict(names[0], f"{both} are both set; keep one, set the other to null", names)


def stream_length(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """Nobody knows how many windows a pass over a stream has before it has been read."""
    if resolved.config.data.streaming and resolved.config.schedule.epochs is not None:
        names = ("schedule.epochs", "data.streaming")
        message = (
            f"{said(resolved, names[0])} needs to know how long a pass is, but "
            f"{said(resolved, names[1])} reads data that nobody has counted; set schedule.steps "
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
            f"{', '.join(f'{weight:g}' for weight in weights)}, but {said(resolved, names[1])} "
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
            f"{said(resolved, names[0])} exceeds {said(resolved, names[1])}; lower warmup_steps "
            f"to at most {schedule.steps}, or raise steps"
        )
        yield Conflict(names[0], message, names)


def mixed_precision(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """One place decides the number format, and it is precision.compute."""
    variable = "ACCELERATE_MIXED_PRECISION"
    asked = environ.get(variable, "").lower() or "no"
    if asked not in ("no", resolved.config.precision.compute):
        legal = fields()["precision.compute"].choices()
        other = f", or set precision.compute: {asked}" if asked in legal else ""
        message = (
            f"accelerate launch asks for {asked}, but {said(resolved, 'precision.compute')}; "
            f"launch with --mixed_precision no (mixed_precision: no in accelerate's YAML){other}"
        )
        yield Conflict(variable, message, ("precision.compute",))


def accumulation(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Conflict]:
    """The window and the micro-batch already say how much is accumulated."""
    variable = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    steps, ranks = count(environ, variable), count(environ, "WORLD_SIZE")
    if steps not in (1, turns(resolved, ranks)):
        names = ("window.examples", "micro_batch.examples")
        per_rank = steps * resolved.config.micro_batch.examples
        message = (
            f"accelerate launch asks for {steps} accumulation steps, but accumulation is derived: "
            f"{said(resolved, names[0])} / ({ranks} ranks x {said(resolved, names[1])}); launch "
            "with --gradient_accumulation_steps 1 and, to keep yours, set "
            f"window.examples: {per_rank * ranks}"
        )
        yield Conflict(variable, message, names)


def tracker(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """What tracks the run is installed. Asks for the package's metadata: a folder named wandb,
    which wandb leaves where it runs, can be imported too.
    """
    name = "track.wandb"
    if resolved.config.track.wandb == "off":
        return
    try:
        metadata.version("wandb")
    except metadata.PackageNotFoundError:
        message = (
            f"{said(resolved, name)} needs the package wandb, which is not installed; "
            "pip install 'gradacc-dist[wandb]', or set track.wandb: off"
        )
        yield Conflict(name, message, (name,))


def overwrite(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """To start anew and to continue from a checkpoint are two things."""
    names = ("run.overwrite", "run.resume")
    if resolved.config.run.overwrite and resolved.config.run.resume not in ("auto", "never"):
        message = (
            f"{said(resolved, names[0])} starts anew, but {said(resolved, names[1])} names what to "
            "continue from; set run.overwrite: false, and another run.output_dir if that one "
            "holds an earlier run, or run.resume: never"
        )
        yield Conflict(names[0], message, names)


def allowed_changes(resolved: Resolved, _environ: Mapping[str, str]) -> Iterator[Conflict]:
    """What may differ from the run that is continued is named by section or field."""
    name = "run.allow_change"
    for given in resolved.config.run.allow_change:
        if given not in sections() and owner(given) is None:
            likely = nearest(given, [*sections(), *fields()])
            meant = f"did you mean {likely[0]}?" if likely else "name a section or a section.field"
            source = resolved.source(name)
            yield Conflict(name, f"{name} ({source}): {given} is no field; {meant}", (name,))


RULES: tuple[Rule, ...] = (
    one_model,
    model_type,
    tokenizer,
    one_window_size,
    one_duration,
    stream_length,
    stream_weights,
    warmup,
    mixed_precision,
    accumulation,
    tracker,
    overwrite,
    allowed_changes,
    *ENGINE_RULES,
)


def conflicts(resolved: Resolved, environ: Mapping[str, str]) -> list[Conflict]:
    """Everything that any rule objects to."""
    return [conflict for rule in RULES for conflict in rule(resolved, environ)]
