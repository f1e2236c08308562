"""B12: a run that moves from cluster to cluster, engine to engine, is the run that stayed.

It stops in mid-epoch, after each leg, and goes on on other ranks, under another engine, with
another micro-batch. What is compared is not what AdamW lets through: ids, denominators, gradient
norms, and at the end the optimizer's state by name.
"""

import contextlib
import io
import json
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from distributed.cases import worst_error
from launching import DEEPSPEED_FILES, ledger
from safetensors.torch import load_file
from test_train import write_rows

from gradacc_dist.config.load import load
from gradacc_dist.signals import Signals
from gradacc_dist.training import train

pytestmark = pytest.mark.cluster
STEPS = 10
# Engine, ranks, micro-batch, and the step after which it stops; an epoch has four windows.
JOURNEYS = {
    "2, 1, 4, 2 ranks": [
        ("zero3", 2, 2, 2),
        ("single", 1, 5, 5),
        ("fsdp2", 4, 1, 6),
        ("zero2", 2, 3, STEPS),
    ],
    "every stage": [
        ("zero0", 2, 1, 1),
        ("zero1", 2, 4, 3),
        ("zero2_offload", 2, 2, 5),
        ("zero3_offload", 2, 1, 7),
        ("ddp", 2, 2, STEPS),
    ],
    "back and forth": [
        ("fsdp2", 2, 2, 3),
        ("ddp", 4, 2, 5),
        ("zero3", 4, 1, 7),
        ("fsdp2", 2, 3, STEPS),
    ],
}
# Sums of thousands of products rounded at 6e-8, grown some tenfold by ten steps of AdamW.
ROUNDING = 1e-5


def leg(world, config, output, name, micro_batch, stop):
    """One invocation. Returns what rank 0 printed. Collective."""
    flags = ["--run.output_dir", output, "--micro_batch.examples", str(micro_batch)]
    flags += ["--run.stop_after_steps", str(stop)] if stop < STEPS else []
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


def saved(folder):
    """The tensors of the last checkpoint by name, and its state."""
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    tensors = {}
    for file in last.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors, json.loads((last / "state.json").read_text())


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moved")
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


@pytest.fixture(scope="module")
def stayed(pools, config):
    output = config.parent / "stayed"
    pools[1].run(leg, str(config), str(output), "single", 3, STEPS)
    return output


@pytest.mark.parametrize("journey", JOURNEYS)
def test_b12_a_run_that_moves_is_the_run_that_stayed(pools, config, stayed, journey):
    output = config.parent / journey.replace(", ", "-").replace(" ", "_")
    begun = 0
    for name, ranks, micro_batch, stop in JOURNEYS[journey]:
        printed = pools[ranks].run(leg, str(config), str(output), name, micro_batch, stop)[0]
        if begun:
            assert f"step {begun} of {STEPS}, from " in " ".join(printed.split())
        begun = stop

    ours, theirs = ledger(output), ledger(stayed)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    assert len({line["engine"] for line in ours}) > 2
    for mine, other in zip(ours, theirs, strict=True):
        for exact in ("example_ids_sha256", "supervised_tokens", "epoch", "examples_seen"):
            assert mine[exact] == other[exact]
        assert mine["learning_rate"] == other["learning_rate"]
        assert mine["loss"] == pytest.approx(other["loss"], rel=ROUNDING)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=ROUNDING)
    assert ledger(output, "eval")[-1]["loss"] == pytest.approx(
        ledger(stayed, "eval")[-1]["loss"], rel=ROUNDING
    )

    (tensors, state), (truth, other_state) = saved(output), saved(stayed)
    assert tensors.keys() == truth.keys()
    for kind in ("exp_avg/", "exp_avg_sq/", "step/", ""):
        mine, other = (
            {n: v for n, v in of.items() if (n.startswith(kind) if kind else "/" not in n)}
            for of in (tensors, truth)
        )
        assert mine
        error, parameter = worst_error(mine, other)
        assert error <= (0 if kind == "step/" else 10 * ROUNDING), parameter
    for exact in ("step", "num_updates", "examples_seen", "epoch", "identity", "data_sha256"):
        assert state[exact] == other_state[exact]
