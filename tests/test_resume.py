"""Runs that end and go on, started as users start them: the same run, wherever it goes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launching import accelerate, environment, ledger, program, run
from resuming import STEPS, copied, flip_a_bit, start, tensors, timeless, write_config
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradacc_dist.export import main as export_main

pytestmark = pytest.mark.cluster
ANEW = ("--run.overwrite", "true")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def whole(config) -> Path:
    """A run without interruption, with checkpoints at 3, 6 and 8."""
    done = start(config, config.parent / "whole")
    assert done.returncode == 0, done.stderr
    return config.parent / "whole"


@pytest.fixture(scope="module")
def killed(config) -> Path:
    """A run killed after step 7, in mid-epoch 2, with half a line more in its ledger."""
    output = config.parent / "killed"
    done = start(config, output, *ANEW, KILL_AT=7, GRADACC_LAUNCH_ID=1)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with (output / "ledger.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    return output


def test_b1_a_killed_run_goes_on_bitwise(config, whole, killed):
    """B1: ledger (but for times), weights and optimizer state, bit for bit. The launch that began
    it repeats its command, which said to begin anew."""
    output = copied(killed, "again")
    done = start(config, output, *ANEW, GRADACC_LAUNCH_ID=1)
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert "which ended without letting go of it" in printed
    assert "launch 1 is started again: run.overwrite: true" in printed
    assert "2 line(s) after step 6 are cut off" in printed
    assert f"step 6 of {STEPS}, from" in printed
    assert "saved under single on 1 rank(s)" in printed
    assert timeless(output) == timeless(whole)
    ours, theirs = tensors(output, STEPS), tensors(whole, STEPS)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("exp_avg_sq/") for name in ours)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    # The stand-in for saving claims 100 seconds of each run.


def test_b12_another_engine_ranks_and_micro_batch_go_on_equally(config, whole, killed):
    """B12: ids and denominators exactly; loss, gradient norm and the optimizer's moments to fp32
    rounding: 6e-8 a sum of thousands of products, grown a little by two steps of new weights."""
    output = copied(killed, "elsewhere")
    launch = accelerate("cpu_fsdp2", "--fsdp_cpu_ram_efficient_loading", "true")
    done = start(config, output, "--micro_batch.examples", "2", launch=launch)
    assert done.returncode == 0, done.stderr
    ours, theirs = ledger(output), ledger(whole)
    assert [record["engine"] for record in ours] == ["single"] * 6 + ["fsdp2"] * 2
    for one, other in zip(ours, theirs, strict=True):
        for exact in ("example_ids_sha256", "supervised_tokens", "learning_rate", "examples_seen"):
            assert one[exact] == other[exact]
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-5)
    ours, theirs = tensors(output, STEPS), tensors(whole, STEPS)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        whole_norm = torch.stack([theirs[n].norm() for n in theirs if "/" in n]).norm()
        if name.startswith("exp_avg/"):
            error = (value - theirs[name]).norm()
            assert error <= 1e-4 * max(theirs[name].norm(), 1e-3 * whole_norm), name
        elif name.startswith("step/"):
            assert torch.equal(value, theirs[name]), name
    assert ours["step/lm_head.weight"] == STEPS


def test_a_finished_run_says_so_and_does_nothing(config, whole):
    before = {
        p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.name != ".lock" and p.is_file()
    }
    done = start(config, whole)
    assert done.returncode == 0, done.stderr
    assert "This run is finished: step 8 of 8" in done.stdout
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())


def test_b6_a_damaged_newest_falls_back_and_a_longer_schedule_goes_on(config, killed):
    """B6. The rates up to step 3 are those of 12 steps too."""
    output = copied(killed, "damaged")
    flip_a_bit(output / "checkpoints" / "step-00000006" / "weights-00000.safetensors")
    done = start(config, output, "--schedule.steps", "12")
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert printed.count("passed over a damaged checkpoint") == 1
    assert "step-00000006/weights-00000.safetensors: damaged" in printed
    assert "step 3 of 12, from" in printed
    records = ledger(output)
    assert [record["step"] for record in records] == list(range(1, 13))
    # 3 of the 12 steps decay.
    assert [record["learning_rate"] for record in records[:9]] == [3e-3] * 9
    assert records[10]["learning_rate"] < 3e-3


def test_b18_a_second_run_on_the_folder_is_refused(config, killed):
    """B18: by real processes; the owner is named, and goes on."""
    output = config.parent / "taken"
    flags = [*program(config, output, "--schedule.steps", "100000")]
    first = subprocess.Popen(
        [sys.executable, *flags],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (output / "ledger.jsonl").exists():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        done = run([sys.executable, *program(config, output, "--run.overwrite", "true")])
        assert done.returncode == 10
        assert f"is in use by another run: process {first.pid} on" in done.stderr
        assert first.poll() is None
        assert (output / "ledger.jsonl").exists()
    finally:
        first.kill()
        first.wait()


def test_an_export_is_the_model_that_was_evaluated(config, whole, capsys):
    out = config.parent / "exported"
    assert export_main([str(whole / "checkpoints" / "step-00000006"), str(out)]) == 0
    assert "step 6" in capsys.readouterr().out
    (record,) = (r for r in ledger(whole, "eval") if r["step"] == 6)
    model, tokenizer = (kind.from_pretrained(out) for kind in (AutoModelForCausalLM, AutoTokenizer))
    total = count = 0.0
    for line in (config.parent / "held_out.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = prompt + tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([ids[:128]])).logits[0]
        targets = torch.tensor(ids[:128])[len(prompt) :]
        losses = functional.cross_entropy(
            logits[len(prompt) - 1 : -1].double(), targets, reduction="sum"
        )
        total, count = total + float(losses), count + len(targets)
    assert count == record["supervised_tokens"]
    assert total / count == pytest.approx(record["loss"], rel=2e-6)
    card = (out / "README.md").read_text()
    for fragment in (f"{record['loss']:.6g}", "| seed | 3 |", "6 of 8", "divided once by the"):
        assert fragment in card
    assert str(config.parent) not in card
    spoilt = copied(whole, "spoilt") / "checkpoints" / "step-00000006"
    flip_a_bit(spoilt / "state.json")
    assert export_main([str(spoilt), str(config.parent / "none")]) == 12
    assert "state.json: damaged" in capsys.readouterr().err
    assert not (config.parent / "none").exists()


def test_export_answers_at_once(tmp_path):
    """P10: no torch for help and mistakes."""
    code = (
        "import sys; from gradacc_dist.export import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    for words, exit_code, said in (
        (["--help"], 0, "usage: python -m gradacc_dist.export CHECKPOINT OUT"),
        ([str(tmp_path)], 10, "1 arguments, not 2"),
        ([str(tmp_path / "no"), str(tmp_path / "out")], 10, "is no folder"),
        ([str(tmp_path), str(tmp_path)], 10, "exists; name a folder that does not"),
        (["--all", "x"], 10, "--all is no flag"),
    ):
        done = run([sys.executable, "-c", code, *words])
        assert done.returncode == exit_code
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())
