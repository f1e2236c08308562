"""The batch script, run with stand-ins for SLURM's programs; tests/slurm asks the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.launches import LaunchFolder
from launcher.request import Request
from launcher.slurm_script import TRY_AGAIN, batch_script

LIMIT_SECONDS = 60
SRUN_STATUS = 3


class Node:
    """The first node of job 7. Programs note their words in NAME.calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job: subprocess.Popen | None = None
        self.has("scontrol", "echo n1")
        self.has("scancel", "touch told")
        self.has("srun", f"exit {SRUN_STATUS}")
        self.has("gradacc", "exit 0")
        self.has("sleep", "/usr/bin/sleep 0.1")

    def has(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\ncd "{self.folder}"\necho "$*" >> {name}.calls\n{body}\n')
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def start(self, **environ: str) -> subprocess.Popen:
        launch = LaunchFolder.of(self.folder / "run", "id")
        script = batch_script(Request(ranks=1, cpu=True), launch, (), 120)
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1"}
        path = os.pathsep.join([str(self.folder), os.environ["PATH"]])
        environ = os.environ | job | {"PATH": path} | environ
        with (self.folder / "log").open("w") as log:
            self.job = subprocess.Popen(["bash", "-c", script], env=environ, stderr=log)
        return self.job

    def until(self, name: str) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while not (self.folder / name).exists():
            assert time.monotonic() < end, f"no {name}"
            time.sleep(0.05)


@pytest.fixture
def node(tmp_path, monkeypatch) -> Iterator[Node]:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    node = Node(tmp_path)
    yield node
    if node.job is not None:
        node.job.kill()
        node.job.wait()


def after_words(node: Node) -> list[str]:
    (words,) = node.calls("gradacc")
    return words.split()


def wait_for(name: str) -> str:
    return f"for _ in {{1..600}}; do [ -e {name} ] && break; /usr/bin/sleep 0.1; done"


def test_what_after_slurm_is_told(node):
    before = int(time.time())
    job = node.start(asked="--asked")  # of whoever submitted it: no signal
    assert job.wait(LIMIT_SECONDS) == 0
    words = after_words(node)
    assert words[:2] == ["after-slurm", "--began"]
    assert before <= int(words[2]) <= time.time()
    assert words[3:] == ["--status", str(SRUN_STATUS), str(node.folder / "run/launches/id")]


def test_sigterm_goes_to_the_ranks_and_not_to_srun(node):
    node.has("srun", f"touch ranks; {wait_for('told')}; exit {SRUN_STATUS}")
    job = node.start()
    node.until("ranks")
    job.terminate()
    assert job.wait(LIMIT_SECONDS) == 0
    assert node.calls("scancel") == ["--signal=TERM 7.0"]
    assert after_words(node)[3:6] == ["--status", str(SRUN_STATUS), "--asked"]


def test_sigterm_that_comes_before_the_ranks_waits_for_them(node):
    node.has("scontrol", f"echo n1; touch early; {wait_for('go')}")
    node.has("srun", f"{wait_for('told')}; [ -e told ] && exit {SRUN_STATUS}")
    job = node.start()
    node.until("early")
    job.terminate()
    (node.folder / "go").touch()
    assert job.wait(LIMIT_SECONDS) == 0
    assert node.calls("scancel") == ["--signal=TERM 7.0"]
    assert after_words(node)[3:6] == ["--status", str(SRUN_STATUS), "--asked"]


def test_sigterm_that_comes_after_the_ranks_stops_no_judgement(node):
    node.has("gradacc", f"touch judging; {wait_for('go')}; exit {TRY_AGAIN}")
    job = node.start()
    node.until("judging")
    job.terminate()
    (node.folder / "go").touch()
    assert job.wait(LIMIT_SECONDS) == 0
    assert node.calls("scancel") == []
    assert node.calls("scontrol")[1:] == ["requeue 7"]


def test_slurm_may_be_away_when_the_job_goes_back(node):
    node.has("gradacc", f"exit {TRY_AGAIN}")
    node.has("scontrol", "echo n1; [ $1 = show ] || [ $(wc -l < scontrol.calls) -gt 3 ]")
    job = node.start()
    assert job.wait(LIMIT_SECONDS) == 0
    assert node.calls("scontrol")[1:] == ["requeue 7"] * 3


def test_slurm_is_not_waited_for_for_ever(node):
    node.has("gradacc", f"exit {TRY_AGAIN}")
    node.has("sleep", "exit 0")
    node.has("scontrol", "echo n1; [ $1 = show ]")
    assert node.start().wait(LIMIT_SECONDS) == TRY_AGAIN
    assert "submit the run once more" in (node.folder / "log").read_text()
    assert node.calls("scontrol")[1:] == ["requeue 7"] * 30
