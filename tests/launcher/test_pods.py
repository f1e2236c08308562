"""A manifest that is played: its pods are processes, and what Kubernetes would do, is done.

Every pod that a run loses takes the others with it; all come back, meet, and go on (B1, B14).
"""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from launching import ROOT, environment, ledger, run
from test_kubernetes import container_of, decided, expanded, job_spec_of, objects_of, run_environ
from test_train import write_rows

from gradacc_dist.exits import read_exits
from launcher.kubernetes import Target, manifest
from launcher.launches import LaunchFolder
from launcher.request import Nodes, Request

pytestmark = pytest.mark.cluster
STEPS = 40
LIMIT_SECONDS = 240


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """The volume: a configuration, its data, and what one process makes of it, in `alone`."""
    folder = tmp_path_factory.mktemp("workspace")
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, **heads}
    write_rows(folder / "train.jsonl", 41, seed=0)
    settings = {
        "run": {"seed": 3, "output_dir": "played"},
        "model": {"tokenizer": "embedded", "config": sizes},
        "data": {"train": "train.jsonl", "max_length": 128, "cache_dir": "cache"},
        "window": {"examples": 12},
        "micro_batch": {"examples": 2},
        "schedule": {"steps": STEPS},
        "checkpoint": {"every_steps": 5},
        "engine": {"timeout_seconds": 30},
        "track": {"sample_tokens": 0},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    words = ["--config", "run.yaml", "--run.output_dir", "alone"]
    done = run([sys.executable, "-m", "gradacc_dist.train", *words], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@dataclass
class Cluster:
    """Runs the Job of a manifest as its controller would. `ends`: index, code, decision."""

    objects: dict
    workspace: Path
    port: int
    pods: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    ends: list[tuple[int, int, str]] = field(default_factory=list)

    def start(self, index: int) -> None:
        told = run_environ(self.objects, index)
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        words = [expanded(word) for word in container_of(self.objects)["args"]]
        # What is mounted there.
        words = ["run.yaml" if word == "/etc/gradacc/run.yaml" else word for word in words]
        self.pods[index] = subprocess.Popen(
            [sys.executable, "-m", "launcher", *words],
            cwd=self.workspace,
            env={**environment(), "PYTHONPATH": str(ROOT), **told},
            start_new_session=True,
        )

    def run_to_the_end(self, meanwhile) -> None:
        """Until every index is done, or the policy ends the job. `meanwhile` is called often."""
        spec = job_spec_of(self.objects)
        failures, deadline = 0, time.monotonic() + LIMIT_SECONDS
        for index in range(spec["completions"]):
            self.start(index)
        while self.pods:
            assert time.monotonic() < deadline, self.ends
            meanwhile(self)
            for index, pod in list(self.pods.items()):
                code = pod.poll()
                if code is None:
                    continue
                del self.pods[index]
                decision = "done" if code == 0 else decided(spec["podFailurePolicy"], code)
                self.ends.append((index, code, decision))
                failures += decision == "Count"
                assert failures <= spec["backoffLimit"], self.ends
                if decision in ("Ignore", "Count"):
                    time.sleep(index)  # one comes back later than the other
                    self.start(index)
            time.sleep(0.1)

    def close(self) -> None:
        for pod in self.pods.values():
            pod.send_signal(signal.SIGTERM)
        for pod in self.pods.values():
            pod.wait(LIMIT_SECONDS)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def cluster(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    output = f"played-{time.monotonic_ns()}"
    request = Request(
        Path("run.yaml"), ("--run.output_dir", output), ranks=1, nodes=Nodes(2, 2), cpu=True
    )
    cluster = Cluster(objects_of(manifest(request, Target("i", "disk"))), workspace, free_port())
    yield cluster, workspace / output
    cluster.close()


def is_at_step(output: Path, step: int) -> bool:
    return (output / "ledger.jsonl").exists() and len(ledger(output)) >= step


def assert_equal_to_the_run_of_one(output: Path, workspace: Path) -> None:
    played, alone = ledger(output), ledger(workspace / "alone")
    assert [each["step"] for each in played] == list(range(1, STEPS + 1))
    for ours, theirs in zip(played, alone, strict=True):
        for exact in ("examples", "denominators"):
            assert ours.get(exact) == theirs.get(exact), ours["step"]


def test_b14_a_node_that_is_drained_takes_all_along_and_all_come_back(cluster, workspace):
    played, output = cluster
    drained = []

    def drain(cluster: Cluster) -> None:
        if not drained and is_at_step(output, 7):
            drained.append(os.kill(cluster.pods[1].pid, signal.SIGTERM))

    played.run_to_the_end(drain)
    assert drained
    assert sorted(played.ends[:2]) == [(0, 23, "Ignore"), (1, 23, "Ignore")]
    assert sorted(played.ends[2:]) == [(0, 0, "done"), (1, 0, "done")]
    assert_equal_to_the_run_of_one(output, workspace)


def test_b1_a_node_that_is_lost_takes_all_along_and_all_come_back(cluster, workspace):
    played, output = cluster
    lost = []

    def lose(cluster: Cluster) -> None:
        """Its launcher, and every rank of it, as the power goes."""
        if lost or not is_at_step(output, 7):
            return
        launcher = cluster.pods[1].pid
        folder = LaunchFolder.of(output, "uid-of-the-job")
        ranks = [
            each.pid
            for attempt in folder.exits.iterdir()
            for each in read_exits(attempt)
            if each.rank == 1
        ]
        for pid in (launcher, *ranks):
            os.kill(pid, signal.SIGKILL)
        os.killpg(launcher, signal.SIGKILL)
        lost.append(ranks)

    played.run_to_the_end(lose)
    assert len(lost) == 1
    assert {index for index, _, decision in played.ends if decision == "Count"} == {0, 1}
    assert sorted(played.ends[-2:]) == [(0, 0, "done"), (1, 0, "done")]
    assert_equal_to_the_run_of_one(output, workspace)
