"""Runs that stop and go on elsewhere, invocation by invocation, on the ranks of pools."""

import contextlib
import io
from pathlib import Path
from unittest.mock import patch

import yaml
from launching import DEEPSPEED_FILES
from test_train import write_rows

from gradacc_dist.config.load import load
from gradacc_dist.signals import Signals
from gradacc_dist.training import train

STEPS = 10


def leg(world, config, output, name, micro_batch, stop, *options):
    """One invocation of the training, in this process. Returns what rank 0 printed. Collective."""
    flags = ["--run.output_dir", output, "--micro_batch.examples", str(micro_batch)]
    flags += ["--run.stop_after_steps", str(stop)] if stop < STEPS else []
    flags += options
    if name.startswith("zero"):
        flags += ["--engine.deepspeed", str(DEEPSPEED_FILES / f"{name}.json")]
    else:
        flags += ["--engine.name", name]
    printed = io.StringIO()
    environ = {"WORLD_SIZE": str(world.ranks)}
    alone = patch("gradacc_dist.training.start", lambda *_: contextlib.nullcontext(world))
    with alone, contextlib.redirect_stdout(printed):
        train(load(Path(config), flags, environ), Signals())
    return printed.getvalue()


def write_config(folder: Path) -> Path:
    """A run of STEPS windows, four to an epoch."""
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, **heads}
    settings = {
        "run": {"seed": 5},
        "model": {"tokenizer": "embedded", "config": sizes},
        "data": {
            "train": str(write_rows(folder / "train.jsonl", 41, seed=0)),
            "evaluate": str(write_rows(folder / "held_out.jsonl", 5, seed=1)),
            "max_length": 128,
            "cache_dir": str(folder / "cache"),
        },
        "window": {"examples": 12},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"steps": STEPS, "warmup_steps": 3},
        "checkpoint": {"save_model": False, "every_minutes": None},
        "track": {"sample_tokens": 0},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"
