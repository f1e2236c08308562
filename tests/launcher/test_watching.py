"""What `gradacc status`, `logs` and `stop` say of runs in every state."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gradacc_dist.errors import ConfigError
from gradacc_dist.exits import Exit
from gradacc_dist.observe.ledger import Ledger, Term, TrainRecord
from launcher import slurm, watching
from launcher.cli import main
from launcher.launches import Launch, LaunchFolder, Outcome, newest, start_ticks

HERE = socket.gethostname()
LATER = time.time() + 3600


def record(step: int) -> TrainRecord:
    return TrainRecord(
        step=step,
        epoch=0,
        examples_seen=8 * step,
        num_examples=8,
        example_ids_sha256="0" * 64,
        loss=2.5,
        terms={"tokens": Term.over(250.0, 100.0)},
        supervised_tokens=100,
        input_tokens=120,
        padded_tokens=128,
        micro_batches=2,
        ranks=2,
        engine="ddp",
        denominator="window",
        reduction_factor=1.0,
        grad_norm=0.75,
        learning_rate=1e-3,
        seconds=0.01,
        tokens_per_second=12000.0,
        skipped=None,
    )


def noted(output: Path, **fields: object) -> LaunchFolder:
    """A launch of the run in `output`: by default one of this test's own process."""
    launch = Launch(
        id="20260101T000000-abcdef",
        kind="local",
        host=HERE,
        started=time.time() - 90,
        command=("train",),
        pid=os.getpid(),
        pid_began=start_ticks(os.getpid()),
    )
    folder = LaunchFolder.of(output, launch.id)
    folder.write_launch(replace(launch, **fields))
    return folder


def dead_process() -> int:
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def test_all_figures_of_a_run(tmp_path):
    folder = noted(tmp_path)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        for step in (1, 2, 3):
            ledger.write(record(step))
    (tmp_path / "config.resolved.yaml").write_text("schedule:\n  steps: 4000\n")
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    for number in range(3):
        note = Exit(rank=0, ranks=1, host=HERE, pid=number, began=float(number))
        path = folder.exits / "1" / f"{HERE}-{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(note)))

    shown = dict(line.split(maxsplit=1) for line in watching.status(tmp_path).splitlines())
    assert shown["state"] == "running"
    assert shown["step"] == "3 of 4,000"
    assert shown["loss"] == "2.500"
    assert shown["tokens/s"] == "12,000"
    assert shown["grad_norm"] == "0.75"
    assert shown["checkpoint"].startswith("step-00000002, ")
    assert shown["restarts"] == "2"
    assert shown["launch"].endswith("1 minute ago")


def test_a_run_that_has_just_been_started_has_no_figures(tmp_path):
    noted(tmp_path)
    shown = dict(line.split(maxsplit=1) for line in watching.status(tmp_path).splitlines())
    assert (shown["step"], shown["checkpoint"], shown["restarts"]) == ("0", "none yet", "0")


@pytest.mark.parametrize(
    ("fields", "outcome", "queue", "text", "goes_on"),
    [
        ({}, None, None, "running", True),
        ({"pid": "dead"}, None, None, "ended without a word", False),
        # Another process with the number of one that ended.
        ({"pid_began": 1}, None, None, "ended without a word", False),
        ({"pid": "dead"}, Outcome(0, "", LATER), None, "finished", False),
        (
            {"pid": "dead"},
            Outcome(11, "bad row", LATER),
            None,
            "ended with exit code 11",
            False,
        ),
        ({"host": "elsewhere"}, None, None, "not known from this host", None),
        ({"job_id": "7", "kind": "slurm"}, None, "PENDING (Resources)", "PENDING", True),
        # Started again: the outcome is that of the try before.
        (
            {"job_id": "7", "kind": "slurm"},
            Outcome(23, "", LATER),
            "RUNNING (n1)",
            "RUNNING",
            True,
        ),
        (
            {"job_id": "7", "kind": "slurm"},
            Outcome(24, "", LATER),
            None,
            "exit code 24",
            False,
        ),
    ],
)
def test_states(tmp_path, monkeypatch, fields, outcome, queue, text, goes_on):
    if fields.get("pid") == "dead":
        fields = {**fields, "pid": dead_process()}
    monkeypatch.setattr(slurm, "state", lambda job_id: queue)
    folder = noted(tmp_path, **fields)
    if outcome:
        folder.write_outcome(outcome)
    _, launch = newest(tmp_path)
    state = watching.state_of(folder, launch)
    assert text in state.text
    assert state.goes_on is goes_on


def test_logs(tmp_path, capfd):
    folder = noted(tmp_path)
    with pytest.raises(ConfigError, match="printed to the terminal it was started from"):
        watching.logs(tmp_path, follow=False)
    folder.log.write_bytes(b"step 1\nstep 2\n")
    watching.logs(tmp_path, follow=False)
    assert capfd.readouterr().out == "step 1\nstep 2\n"


def test_logs_follow_until_the_end_and_lose_nothing(tmp_path):
    """What is written while the last look for new lines is under way is shown too."""
    script = "import sys, time; [print(n, flush=True) or time.sleep(0.02) for n in range(40)]"
    folder = noted(tmp_path)
    with folder.log.open("wb") as log:
        writer = subprocess.Popen([sys.executable, "-c", script], stdout=log)
        noted(tmp_path, pid=writer.pid, pid_began=start_ticks(writer.pid))
        follow = [sys.executable, "-m", "launcher", "logs", str(tmp_path), "--follow"]
        reader = subprocess.Popen(follow, stdout=subprocess.PIPE, text=True)
        writer.wait()
    shown, _ = reader.communicate(timeout=60)
    assert shown.split() == [str(number) for number in range(40)]


def test_stop_of_what_has_ended_says_how_it_ended(tmp_path, capsys):
    folder = noted(tmp_path, pid=dead_process())
    folder.write_outcome(Outcome(22, "rank 0: NonFiniteError: loss", time.time()))
    assert main(["stop", str(tmp_path)]) == 0
    assert "ended with exit code 22" in capsys.readouterr().out
    assert not folder.stop.exists()


def test_stop_from_another_host_names_it(tmp_path, capsys):
    folder = noted(tmp_path, host="elsewhere", pid=dead_process())
    assert main(["stop", str(tmp_path)]) == 10
    assert not folder.stop.exists()
    assert "started on elsewhere" in capsys.readouterr().err


def test_one_launch_at_a_time(tmp_path):
    noted(tmp_path)
    with pytest.raises(ConfigError, match=f"has a run going on: process {os.getpid()}"):
        watching.require_alone(tmp_path)
    noted(tmp_path, pid=dead_process())
    watching.require_alone(tmp_path)


@pytest.mark.parametrize("command", ["status", "logs", "stop"])
def test_a_folder_without_a_launch_is_named(tmp_path, capsys, command):
    assert main([command, str(tmp_path)]) == 10
    assert f"{tmp_path} has no launch of gradacc in it" in capsys.readouterr().err


def test_status_finds_the_runs_of_the_folder_it_is_called_in(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 10
    assert "no run in" in capsys.readouterr().err
    noted(tmp_path / "runs" / "one")
    noted(tmp_path / "runs" / "two")
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "runs/one" in shown
    assert "runs/two" in shown


def test_the_newest_launch_is_the_one_that_counts(tmp_path):
    noted(tmp_path)
    later = LaunchFolder.of(tmp_path, "20260102T000000-000000")
    launch = noted(tmp_path).read_launch()
    later.write_launch(replace(launch, id="20260102T000000-000000", started=launch.started + 1))
    assert newest(tmp_path)[0] == later
