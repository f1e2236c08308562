"""From a checkpoint to a folder that `from_pretrained` loads, with a card that says what it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers
from pydantic import ValidationError
from transformers import PreTrainedModel

from gradacc_dist.checkpoint.export import write_pretrained
from gradacc_dist.checkpoint.restore import (
    SavedTensors,
    candidates_at,
    check_fit,
    first_of,
    run_state,
)
from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.checkpoint.store import Checkpoint
from gradacc_dist.checkpoint.verify import verify
from gradacc_dist.config.fields import nested
from gradacc_dist.config.load import read_back
from gradacc_dist.config.present import RESOLVED
from gradacc_dist.config.schema import Config
from gradacc_dist.data.load import load_tokenizer
from gradacc_dist.engines.state import named_weights
from gradacc_dist.errors import CheckpointError, ConfigError, DataError, DiskError
from gradacc_dist.model import build_model
from gradacc_dist.observe.ledger import (
    LEDGER,
    EvalRecord,
    Record,
    TrainRecord,
    comparison_label,
    read,
)

LAW = (
    "the loss of a window is the sum of its tokens' losses over all ranks and micro-batches, "
    "divided once by the global count of its supervised tokens"
)


def export(path: Path, out: Path) -> str:
    """Write the model of the checkpoint, or run, at `path` into the new folder `out`.

    Returns what to tell of it. Verified before it is read; `out` appears complete or not at all.
    Raises CheckpointError, ConfigError, DataError where the tokenizer is gone, DiskError.
    """
    transformers.utils.logging.disable_progress_bar()
    checkpoint, passed_over = first_of(candidates_at(path, "CHECKPOINT"), verify)
    assert checkpoint is not None, "candidates_at names one at least"
    state = run_state(checkpoint)
    config = config_of(state, checkpoint)
    tokenizer = load_tokenizer(config)
    model = build_model(config.model, config.precision, tokenizer, config.run.seed)
    fill(model, SavedTensors(checkpoint.folder, checkpoint.manifest, with_optimizer=False))
    making = out.with_name(out.name + ".making")
    with DiskError.naming(out):
        shutil.rmtree(making, ignore_errors=True)
        write_pretrained(model, model.state_dict(), making)
        tokenizer.save_pretrained(making)
        (making / "README.md").write_text(card(model, config, state, records_at(checkpoint, state)))
        making.rename(out)
    told = [f"passed over a damaged checkpoint: {why}" for why in passed_over]
    return "\n".join([*told, f"{out}: {checkpoint.folder}, step {state.step:,}"])


def config_of(state: RunState, checkpoint: Checkpoint) -> Config:
    """The deciding part of the run's configuration, as the checkpoint has it.

    Only where tokenizers are cached is taken from the run's folder, if that is there.
    """
    try:
        config = Config.model_validate(nested({**state.identity, "run.seed": state.seed}))
    except ValidationError as error:
        raise CheckpointError(
            f"{checkpoint.folder}: its configuration is not one of this version: "
            f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}; export it with gradacc_dist "
            f"{state.version}"
        ) from error
    resolved = checkpoint.folder.parent.parent / RESOLVED
    try:
        cache_dir = read_back(resolved).data.cache_dir
    except ConfigError:  # a checkpoint that was copied alone
        return config
    data = config.data.model_copy(update={"cache_dir": cache_dir})
    return config.model_copy(update={"data": data})


def fill(model: PreTrainedModel, saved: SavedTensors) -> None:
    """Give `model` the saved weights, one at a time. Raises CheckpointError."""
    weights = dict(named_weights(model))
    check_fit(saved, {name: tuple(value.shape) for name, value in weights.items()})
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(saved[name])


def records_at(checkpoint: Checkpoint, state: RunState) -> list[Record]:
    """The ledger's lines of the checkpoint's step; none where the ledger is not beside it."""
    ledger = checkpoint.folder.parent.parent / LEDGER
    try:
        return [record for record in read(ledger) if record.step == state.step]
    except DataError:
        return []


def card(model: PreTrainedModel, config: Config, state: RunState, records: list[Record]) -> str:
    """The model card, in Markdown. Names no path and no host."""
    window = config.window
    size = f"{window.examples:,} examples" if window.examples else ""
    size = size or f"up to {window.supervised_tokens:,} supervised tokens"
    label = comparison_label(config.objective.denominator)
    rows = {
        "model": f"{type(model).__name__}, {model.num_parameters():,} parameters",
        "objective": config.objective.name,
        "denominator": label or f"{config.objective.denominator}: {LAW}",
        "window": f"{size} between two optimizer steps",
        "steps": f"{state.step:,} of {state.num_steps:,} ({state.num_updates:,} optimizer steps)",
        "examples seen": f"{state.examples_seen:,}",
        "seed": f"{state.seed}",
        "data, SHA-256": f"`{state.data_sha256}`",
        "held-out data, SHA-256": f"`{state.held_out_sha256}`" if state.held_out_sha256 else "none",
        **_losses(records),
        "optimizer": f"{config.optimizer.name}, peak learning rate "
        f"{config.optimizer.learning_rate:g}, {config.schedule.shape}",
        "precision": config.precision.compute,
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", "---", ""]
    intro = f"# {type(model).__name__}, step {state.step:,}\n\nTrained by gradacc_dist "
    intro += (
        f"{state.version}: {LAW}. The result does not depend on ranks, micro-batches or engine."
    )
    return "\n".join([*head, intro, "", "| | |", "|---|---|", *lines, ""])


def _losses(records: list[Record]) -> dict[str, str]:
    rows = {}
    for record in records:
        if isinstance(record, TrainRecord):
            rows["train loss"] = f"{record.loss:.6g} nats per item, over this step's "
            rows["train loss"] += f"{record.supervised_tokens:,} supervised tokens"
        elif isinstance(record, EvalRecord):
            rows["held-out loss"] = f"{record.loss:.6g} nats per item, over "
            rows["held-out loss"] += f"{record.supervised_tokens:,} supervised tokens"
    return rows or {"loss": "not known: the run's ledger was not beside the checkpoint"}
