"""Runs that save and are continued, and what they leave, by readers that are not the project's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from launching import LIMIT_SECONDS, ROOT, environment, launcher
from safetensors.torch import load_file
from test_train import write_rows

STEPS = 8
EXAMPLES = 42  # windows of 12: the fifth begins the second epoch


def write_config(folder: Path) -> Path:
    """A run of 8 windows over two epochs, its learning rate at the peak up to step 6."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = {
        "run": {"seed": 3},
        "model": {
            "tokenizer": "embedded",
            "config": {"model_type": "llama", **sizes, **heads},
        },
        "data": {
            "train": str(write_rows(folder / "train.jsonl", EXAMPLES, seed=0)),
            "evaluate": str(write_rows(folder / "held_out.jsonl", 9, seed=1)),
            "max_length": 128,
            "cache_dir": str(folder / "cache"),
        },
        "window": {"examples": 12},
        "micro_batch": {"examples": 4},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"steps": STEPS, "shape": "warmup_stable_decay", "decay_fraction": 0.25},
        "evaluate": {"every_steps": 3},
        "track": {"every_steps": 2, "sample_tokens": 0},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(
    config: Path, output: Path, *flags: str, launch: list[str] | None = None, **settings: int
) -> subprocess.CompletedProcess[str]:
    """Train and save every 3 steps and at the end; `settings` are those of saving_run."""
    chosen = ["--config", str(config), "--run.output_dir", str(output), *flags]
    program = [str(ROOT / "tests" / "saving_run.py"), *chosen]
    given = {"SAVE_EVERY": "3", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    given |= {name: str(value) for name, value in settings.items()}
    return subprocess.run(
        [*(launch or launcher("python", 1)), *program],
        cwd=ROOT,
        env=environment() | given,
        text=True,
        capture_output=True,
        timeout=LIMIT_SECONDS,
    )


def copied(output: Path, name: str) -> Path:
    """The folder of a run, once more, beside it."""
    target = output.with_name(name)
    shutil.copytree(output, target)
    return target


def timeless(output: Path) -> list[dict]:
    """The ledger's lines in order, without what differs by the clock."""
    lines = map(json.loads, (output / "ledger.jsonl").read_text().splitlines())
    return [
        {
            name: value
            for name, value in line.items()
            if name not in ("seconds", "tokens_per_second")
        }
        for line in lines
    ]


def tensors(output: Path, step: int) -> dict[str, torch.Tensor]:
    """Everything that a run saved at a step, by name."""
    found: dict[str, torch.Tensor] = {}
    for file in (output / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"):
        found |= load_file(file)
    return found


def flip_a_bit(file: Path) -> None:
    """In the middle of it."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
