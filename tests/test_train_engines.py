"""The main job under each engine, started as users start it: the engine changes nothing else."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from launching import accelerate, launcher, ledger, program, run, train
from safetensors.torch import load_file
from test_train import write_rows
from transformers import LlamaConfig, LlamaForCausalLM

from gradacc_dist.data import tokenizer as tokenizers

STEPS = 4


def save_start(folder: Path, cache: Path) -> Path:
    """A pretrained model with tied embeddings, and its tokenizer."""
    tokenizer = tokenizers.load("embedded", cache)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    config = {
        "run": {"seed": 3},
        "model": {"path": str(save_start(folder / "start", folder / "cache"))},
        "data": {
            "train": str(write_rows(folder / "train.jsonl", 40, seed=0)),
            "evaluate": str(write_rows(folder / "held_out.jsonl", 9, seed=1)),
            "max_length": 128,
            "cache_dir": str(folder / "cache"),
        },
        "window": {"examples": 12},
        "micro_batch": {"examples": 2},
        "schedule": {"steps": STEPS},
        "track": {"sample_tokens": 0},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_fsdp2_by_accelerates_configuration_is_the_same_run(folder):
    """ids and denominators exactly; loss and gradient norm to fp32 rounding: 6e-8 a sum of
    thousands of products, grown a little by each step's new weights."""
    alone, sharded = folder / "alone", folder / "sharded"
    done = train(folder / "run.yaml", alone)
    assert done.returncode == 0, done.stderr
    # accelerate's default; said, because it changes how transformers loads a model.
    launch = accelerate("cpu_fsdp2", "--fsdp_cpu_ram_efficient_loading", "true")
    done = run([*launch, *program(folder / "run.yaml", sharded, "--engine.reduce", "window")])
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert "fsdp2 on cpu: accelerate launch asks for FSDP" in printed
    assert "gradients travel once a window, for up to" in printed

    for ours, theirs in zip(ledger(sharded), ledger(alone), strict=True):
        for exact in ("example_ids_sha256", "supervised_tokens", "input_tokens", "learning_rate"):
            assert ours[exact] == theirs[exact]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-6)
        assert (ours["engine"], ours["reduction_factor"]) == ("fsdp2", 1.0)
    (ours,), (theirs,) = ledger(sharded, "eval"), ledger(alone, "eval")
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-6)

    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (sharded, alone))
    assert {name: w.shape for name, w in ours.items()} == {n: w.shape for n, w in theirs.items()}
    config = json.loads((sharded / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_a_planted_factor_stops_before_training(folder):
    """Exit code 10, one message, no step."""
    planted = folder / "planted.py"
    planted.write_text(
        "import sys\n"
        "from gradacc_dist.engines import replicated\n"
        "sound = replicated._reduce_to_sum\n"
        "def halved(state, bucket):\n"
        "    bucket.buffer().div_(2)\n"
        "    return sound(state, bucket)\n"
        "halved.__annotations__ = dict(sound.__annotations__)\n"
        "replicated._reduce_to_sum = halved\n"
        "from gradacc_dist.train import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [*launcher("torchrun", 2), str(planted), "--config", str(folder / "run.yaml")]
    done = run([*command, "--run.output_dir", str(folder / "planted")])
    assert done.returncode != 0
    assert "exitcode  : 10" in done.stderr
    printed = " ".join(done.stderr.split())
    assert printed.count("the gradients it hands over are 0.5 times") == 1
    assert "averages over the ranks where it promised a sum" in printed
    assert not (folder / "planted" / "ledger.jsonl").exists()
