"""The main job under each engine, started as users start it: the engine changes nothing else."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from launching import ROOT, accelerate, launcher, ledger, program, run, train
from safetensors.torch import load_file
from test_train import write_rows
from transformers import LlamaConfig, LlamaForCausalLM

from gradacc_dist.data import tokenizer as tokenizers
from gradacc_dist.engines import zero_start
from gradacc_dist.errors import ConfigError

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


def same_run(ours: Path, theirs: Path) -> None:
    """ids and denominators exactly; loss and gradient norm to fp32 rounding."""
    for mine, other in zip(ledger(ours), ledger(theirs), strict=True):
        for exact in ("example_ids_sha256", "supervised_tokens", "input_tokens", "learning_rate"):
            assert mine[exact] == other[exact]
        assert mine["loss"] == pytest.approx(other["loss"], rel=2e-6)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-5)


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    done = train(folder / "run.yaml", folder / "one")
    assert done.returncode == 0, done.stderr
    return folder / "one"


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["accelerate", "torchrun", "deepspeed"])
def test_deepspeed_under_every_launcher(folder, alone, name):
    """Chosen by an accelerate YAML, or by the path of a JSON."""
    output = folder / f"zero3_{name}"
    if name == "accelerate":
        what = program(folder / "run.yaml", output)
        done = run([*accelerate("cpu_zero3", "--num_processes", "2"), *what])
    else:
        json_path = str(ROOT / "configs" / "deepspeed" / "zero3.json")
        flags = ("--engine.deepspeed", json_path)
        done = train(folder / "run.yaml", output, *flags, name=name, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "zero3 on cpu: " in " ".join(done.stdout.split())
    assert {line["engine"] for line in ledger(output)} == {"zero3"}
    same_run(output, alone)
    ours, theirs = (load_file(run_ / "model" / "model.safetensors") for run_ in (output, alone))
    assert ours.keys() == theirs.keys()
    for weight, value in theirs.items():
        torch.testing.assert_close(ours[weight], value, rtol=1e-4, atol=1e-6)


def without(folder: Path, *missing: str) -> list[str]:
    """A program that trains where these modules cannot be imported."""
    program_ = folder / "without.py"
    program_.write_text(
        "import sys\n"
        f"for name in {missing}: sys.modules[name] = None\n"
        "from gradacc_dist.train import main\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    return [sys.executable, str(program_), "--config", str(folder / "run.yaml")]


def test_c9_deepspeed_that_is_missing_is_named(folder):
    """One line, exit code 10; and nobody misses it who did not choose it."""
    chosen = ["--engine.deepspeed", str(ROOT / "configs" / "deepspeed" / "zero2.json")]
    done = run([*without(folder, "deepspeed"), "--run.output_dir", str(folder / "no"), *chosen])
    assert done.returncode == 10
    assert done.stderr.startswith("ConfigError: engine.name: deepspeed cannot be used: ")
    assert "pip install 'gradacc-dist[deepspeed]'" in done.stderr
    assert "Traceback" not in done.stderr
    few = ["--schedule.steps", "1", "--checkpoint.save_model", "false"]
    done = run([*without(folder, "deepspeed"), "--run.output_dir", str(folder / "other"), *few])
    assert done.returncode == 0, done.stderr


def test_c4_a_lock_that_a_killed_start_left_is_not_waited_for_for_ever(
    monkeypatch, tmp_path, capsys
):
    """torch's own wait for it has no end and no word."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(zero_start, "COMPILING_SECONDS", 0.2)
    lock = tmp_path / "some_op" / "lock"
    lock.parent.mkdir()
    lock.touch()
    zero_start.wait_for_compilers(speaks=True)
    assert not lock.exists()
    assert f"compiles an operator of DeepSpeed ({lock})" in capsys.readouterr().err


def test_float16_on_a_cpu_is_refused(folder):
    """With the remedy, under whichever engine."""
    done = train(folder / "run.yaml", folder / "half", "--precision.compute", "fp16")
    assert done.returncode == 10
    assert done.stderr.startswith("ConfigError: precision.compute: fp16 is for GPUs, but")
    assert "set precision.compute: bf16 or fp32" in done.stderr


@pytest.mark.parametrize("missing", ["ninja", "c++"])
def test_what_deepspeed_compiles_with_is_named(monkeypatch, missing):
    monkeypatch.setenv("PATH", os.environ["PATH"])  # restored afterwards
    monkeypatch.setattr(zero_start.shutil, "which", lambda tool: None if tool == missing else tool)
    with pytest.raises(ConfigError, match="compiles an operator here") as caught:
        zero_start.import_deepspeed(torch.device("cpu"))
    assert f"needs {missing}, not found on PATH" in str(caught.value)
    assert "engine.name: fsdp2 or ddp" in str(caught.value)
