"""A run in the background: started, watched, stopped, started again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from launching import environment, ledger, train
from test_train import write_rows

from launcher.launches import newest

pytestmark = pytest.mark.cluster
LIMIT_SECONDS = 240
STEPS = 60


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, **heads}
    settings = {
        "model": {"tokenizer": "embedded", "config": sizes},
        "data": {
            "train": str(write_rows(folder / "train.jsonl", 70, seed=0)),
            "max_length": 128,
            "cache_dir": str(folder / "cache"),
        },
        "window": {"examples": 8},
        "micro_batch": {"examples": 4},
        "schedule": {"steps": STEPS},
        "track": {"sample_tokens": 0},
        "engine": {"timeout_seconds": 60},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


def gradacc(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        text=True,
        capture_output=True,
        env=environment(),
        timeout=LIMIT_SECONDS,
    )


def until(happened: Callable[[], bool], output: Path) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while not happened():
        assert time.monotonic() < end, newest(output)[0].log.read_text()
        time.sleep(0.05)


def has_step(output: Path, step: int) -> bool:
    path = output / "ledger.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") >= step


def test_a_run_in_the_background_is_stopped_and_goes_on(config, tmp_path):
    output = tmp_path / "its output"  # as a shell would split it
    request = ("--config", str(config), "--ranks", "2", "--run.output_dir", str(output))

    done = gradacc("submit", "--local", *request)
    assert done.returncode == 0, done.stderr
    until(lambda: has_step(output, 3), output)
    assert "state       running" in gradacc("status", str(output)).stdout
    assert gradacc("submit", "--local", *request).returncode == 10
    stopped = gradacc("stop", str(output))
    assert stopped.returncode == 0
    assert "ended with exit code 23" in stopped.stdout
    step = len(ledger(output))
    assert (output / "checkpoints" / f"step-{step:08d}").is_dir()
    assert step < STEPS
    last_line = gradacc("logs", str(output)).stdout.splitlines()[-1]
    assert last_line.startswith("gradacc: rank ")
    assert "PreemptedError: SIGTERM to all 2 ranks" in last_line

    assert gradacc("submit", "--local", *request).returncode == 0
    assert "resumed" in gradacc("logs", str(output), "--follow").stdout
    assert "finished" in gradacc("status", str(output)).stdout

    alone = train(config, tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    for ours, theirs in zip(ledger(output), ledger(tmp_path / "alone"), strict=True):
        for exact in ("example_ids_sha256", "supervised_tokens", "learning_rate"):
            assert ours[exact] == theirs[exact]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_c8_the_first_cause_is_the_last_line_and_the_exit_code(config, tmp_path, ranks):
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"txt": "bad"}\n')
    request = ("--config", str(config), "--ranks", ranks, "--cpu")
    here = ("--run.output_dir", str(tmp_path / "run"), "--data.cache_dir", str(tmp_path / "cache"))
    done = gradacc("train", *request, *here, "--data.train", str(tmp_path / "bad.jsonl"))
    assert done.returncode == 11
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith("gradacc: rank ")
    assert "DataError" in last_line
    assert "bad.jsonl" in last_line
