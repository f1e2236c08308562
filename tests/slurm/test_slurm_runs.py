"""Runs under a real SLURM of two nodes: submitted, preempted, stopped, bereft of a node; and still
the run of one process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from launching import ledger, train
from requirements_of import require
from slurm.cluster import Cluster, Job, cluster, missing
from test_train import write_rows

pytestmark = pytest.mark.cluster

STEPS = 24


@pytest.fixture(scope="module")
def slurm(hosts_allowed) -> Iterator[Cluster]:
    reason = missing()
    require(reason is None, f"{reason}")
    with cluster() as up:
        yield up


@pytest.fixture(scope="module")
def config(tmp_path_factory, hosts_allowed) -> Path:
    """Long enough to be interrupted, with what a path can have in it."""
    folder = tmp_path_factory.mktemp("slurm") / 'it\'s 50% of "this" & $HOME #1'
    folder.mkdir()
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


@pytest.fixture(scope="module")
def alone(config) -> list[dict]:
    """The ledger of one process that nobody interrupts."""
    output = config.parent / "alone"
    done = train(config, output)
    assert done.returncode == 0, done.stderr
    return ledger(output)


def is_the_run_of_one_process(job: Job, alone: list[dict]) -> None:
    """ids and denominators exactly; loss and gradient norm to fp32 rounding (6e-8 a sum of
    thousands of products, grown a little by each step's new weights)."""
    for ours, theirs in zip(ledger(job.output), alone, strict=True):
        assert (ours["ranks"], theirs["ranks"]) == (2, 1)
        for exact in ("step", "example_ids_sha256", "supervised_tokens", "learning_rate"):
            assert ours[exact] == theirs[exact]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def test_a_run_is_submitted_and_ends(slurm, config, alone):
    job = slurm.submit(config, config.parent / "submitted", "--sbatch", "--comment='two words'")
    launch = json.loads((job.folder / "launch.json").read_text())
    assert (launch["kind"], launch["job_id"]) == ("slurm", job.id)
    job.until(lambda: job.state == "RUNNING")
    assert "RUNNING n[1-2]" in job.gradacc("status")
    assert "Comment=two words" in slurm.ask("scontrol", "show", "job", job.id)

    assert job.end() == "COMPLETED"
    assert "2 (n1: 1 rank(s), n2: 1 rank(s))" in " ".join(job.log.split())
    assert (job.outcome["exit_code"], job.outcome["restarts"]) == (0, 0)
    assert (job.output / "model").is_dir()
    assert "finished" in job.gradacc("status")
    assert "finished" in job.gradacc("stop")
    assert job.gradacc("logs") == job.log
    is_the_run_of_one_process(job, alone)


def test_a_preempted_run_goes_on(slurm, config, alone):
    """SLURM gives its nodes to somebody more urgent, for a while."""
    job = slurm.submit(config, config.parent / "preempted")
    job.until_step(3)
    urgent = slurm.ask("sbatch", "--parsable", "-p", "urgent", "-N2", "-o", "/dev/null", "--wrap=:")
    assert urgent
    assert job.end() == "COMPLETED"

    assert "PreemptedError" in job.log
    assert "starts again, from step" in job.log
    assert (job.restarts, job.outcome["restarts"], job.outcome["exit_code"]) == (1, 1, 0)
    is_the_run_of_one_process(job, alone)


def test_a_run_that_is_stopped_saves_and_stays_away(slurm, config):
    job = slurm.submit(config, config.parent / "stopped", "--schedule.steps", "100000")
    job.until_step(3)
    assert "ended with exit code 23" in job.gradacc("stop")
    assert job.end() == "FAILED"  # what SLURM calls every exit code but 0

    assert "asked to stop: not started again" in job.log
    assert (job.restarts, job.outcome["exit_code"]) == (0, 23)
    assert list((job.output / "checkpoints").glob("step-*"))


def test_a_run_that_waits_is_taken_out_of_the_queue(slurm, config):
    job = slurm.submit(config, config.parent / "waiting", "--sbatch", "--hold")
    assert "PENDING (JobHeldUser)" in job.gradacc("status")
    assert "stopped before it began" in job.gradacc("stop")
    assert job.end() == "CANCELLED"
    assert not job.log


def test_a_killed_rank_and_a_lost_node_cost_what_was_not_saved(slurm, config, alone):
    """After the one our script puts the job back into the queue, after the other SLURM itself."""
    job = slurm.submit(config, config.parent / "bereft", "--checkpoint.every_steps", "5")
    job.until(lambda: (job.output / "checkpoints" / "step-00000005").exists())
    os.kill(job.rank_on("n2", attempt=1), signal.SIGKILL)
    job.until(lambda: job.restarts == 1)
    assert "ended without a word: killed" in job.outcome["cause"]
    assert "starts again, from step" in job.log

    job.until(lambda: (job.output / "checkpoints" / "step-00000015").exists())
    slurm.lose_node("n2")
    job.until(lambda: job.restarts == 2)
    slurm.start_node("n2")
    assert job.end() == "COMPLETED"
    assert (job.restarts, job.outcome["restarts"], job.outcome["exit_code"]) == (2, 2, 0)
    is_the_run_of_one_process(job, alone)


def test_data_that_is_refused_is_refused_once(slurm, config):
    bad = config.parent / "bad.jsonl"
    bad.write_text('{"question": "what?"}\n')
    job = slurm.submit(config, config.parent / "refused", "--data.train", str(bad))
    assert job.end() == "FAILED"
    assert (job.restarts, job.outcome["exit_code"]) == (0, 11)
    assert "DataError" in job.outcome["cause"]


def test_a_mistake_is_told_before_anything_is_submitted(slurm, config):
    output = config.parent / "mistaken"
    words = ("--config", str(config), "--run.output_dir", str(output), "--schedule.stepz", "3")
    done = slurm.gradacc("submit", "--slurm", "--ranks", "1", "--cpu", *words)
    assert done.returncode == 10
    assert "schedule.stepz" in done.stderr
    assert not output.exists()
