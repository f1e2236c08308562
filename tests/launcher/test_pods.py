"""A manifest that is played: its pods are processes, and what Kubernetes would do, is done.

Every pod that a run loses takes the others with it; all come back, meet, and go on.
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
LIMIT_SECONDS = 480


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
    path = output / "ledger.jsonl"
    return path.exists() and path.read_text().count('"kind": "train"') >= step


def ranks_of_pod(output: Path, index: int) -> list[int]:
    """Process ids of the ranks that run there: one in each pod of this run."""
    attempts = LaunchFolder.of(output, "uid-of-the-job").exits.iterdir()
    notes = [note for attempt in attempts for note in read_exits(attempt)]
    return [note.pid for note in notes if note.rank == index and note.ended is None]


def test_b1_b14_nodes_that_are_drained_and_lost_take_all_along_and_all_come_back(
    cluster, workspace
):
    played, output = cluster
    done: list[str] = []

    def meanwhile(cluster: Cluster) -> None:
        if not done and is_at_step(output, 5):
            cluster.pods[1].send_signal(signal.SIGTERM)
            done.append("drained")
        # Back, and further than before.
        if done == ["drained"] and len(cluster.ends) == 2 and is_at_step(output, 18):
            # As the power goes: its launcher, and what that has started, and its rank.
            for pid in ranks_of_pod(output, 1):
                os.kill(pid, signal.SIGKILL)
            os.killpg(cluster.pods[1].pid, signal.SIGKILL)
            done.append("lost")

    played.run_to_the_end(meanwhile)
    assert done == ["drained", "lost"]
    assert sorted(played.ends[:2]) == [(0, 23, "Ignore"), (1, 23, "Ignore")]
    assert {(index, decision) for index, _, decision in played.ends[2:4]} == {
        (0, "Count"),
        (1, "Count"),
    }
    assert sorted(played.ends[4:]) == [(0, 0, "done"), (1, 0, "done")]

    ours, alone = ledger(output), ledger(workspace / "alone")
    assert [each["step"] for each in ours] == list(range(1, STEPS + 1))
    for exact in ("example_ids_sha256", "num_examples", "supervised_tokens"):
        assert [each[exact] for each in ours] == [each[exact] for each in alone], exact
    # fp32 rounding, grown a little by the weights of each step.
    norms = [each["grad_norm"] for each in alone]
    assert [each["grad_norm"] for each in ours] == pytest.approx(norms, rel=1e-4)
