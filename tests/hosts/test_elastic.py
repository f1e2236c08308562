"""B11: nodes come and go under `gradacc train --nodes MIN:MAX`, and the run stays the same run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from hosts.network import Host
from launching import ROOT, environment, ledger, train
from test_train import write_rows

pytestmark = pytest.mark.cluster
STEPS = 90
LIMIT_SECONDS = 400


@pytest.fixture(scope="module")
def config(tmp_path_factory, hosts_allowed) -> Path:
    """Windows of six micro-batches; a checkpoint every few steps, which is what a loss costs."""
    folder = tmp_path_factory.mktemp("elastic")
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, **heads}
    settings = {
        # Of a launch that is started again, this has been done.
        "run": {"overwrite": True},
        "model": {"tokenizer": "embedded", "config": sizes},
        "data": {
            "train": str(write_rows(folder / "train.jsonl", 70, seed=0)),
            "max_length": 128,
            "cache_dir": str(folder / "cache"),
        },
        "window": {"examples": 12},
        "micro_batch": {"examples": 2},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"steps": STEPS},
        "checkpoint": {"every_steps": 10, "save_model": False},
        "engine": {"timeout_seconds": 60},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def alone(config) -> list[dict]:
    """The ledger of one process that nobody disturbs."""
    done = train(config, config.parent / "alone")
    assert done.returncode == 0, done.stderr
    return ledger(config.parent / "alone")


class Node:
    """`gradacc train` on a host, one rank."""

    def __init__(self, host: Host, config: Path, output: Path, port: int, *flags: str) -> None:
        self.host = host
        self._shown = output.parent / f"{output.name}-{host.name}.txt"
        words = ["train", "--config", str(config), "--nodes", "1:2", "--ranks", "1", "--cpu"]
        words += ["--run.output_dir", str(output)]
        said = {"MASTER_ADDR": "n1", "MASTER_PORT": str(port), "GRADACC_LAUNCH_ID": output.name}
        with self._shown.open("a") as shown:
            self.process = subprocess.Popen(
                host.command([sys.executable, "-m", "launcher", *words, *flags]),
                env=environment() | said,
                cwd=ROOT,
                stdout=shown,
                stderr=subprocess.STDOUT,
            )

    @property
    def shown(self) -> str:
        return self._shown.read_text()

    def lose(self) -> None:
        """As a power cut does, but that its peers hear of it."""
        self.host.end_processes()  # all of them: none is left to note how it ended
        self.process.wait()

    def join(self) -> int:
        try:
            return self.process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(self.shown)


def until(happened: Callable[[], bool], *nodes: Node) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while not happened():
        assert time.monotonic() < end, "\n".join(node.shown for node in nodes)
        time.sleep(0.1)


def same_run(output: Path, alone: list[dict]) -> None:
    """ids and denominators exactly; gradient norms to fp32 rounding that so many steps let grow."""
    records = ledger(output)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    for ours, theirs in zip(records, alone, strict=True):
        for exact in ("example_ids_sha256", "supervised_tokens", "learning_rate"):
            assert ours[exact] == theirs[exact]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


@dataclass
class Launch:
    """One launch, on as many hosts as it is started on."""

    config: Path
    output: Path
    port: int
    nodes: list[Node] = field(default_factory=list)

    def start(self, host: Host, *flags: str) -> Node:
        self.nodes.append(Node(host, self.config, self.output, self.port, *flags))
        return self.nodes[-1]

    def at(self, ranks: int, step: int) -> bool:
        """Whether the last step taken was by so many ranks, and that far at least."""
        path = self.output / "ledger.jsonl"
        if not path.exists() or not (records := ledger(self.output)):
            return False
        return records[-1]["ranks"] == ranks and records[-1]["step"] >= step


@pytest.fixture
def launch(config, two_hosts, request) -> Iterator[Launch]:
    """Ends what is left of it."""
    one, _ = two_hosts
    begun = Launch(config, config.parent / request.node.name, one.free_port(sys.executable))
    yield begun
    for node in begun.nodes:
        node.lose()


def test_b11_nodes_are_lost_and_join(alone, two_hosts, launch):
    """One is lost, and the run shrinks; one joins, and it grows; the one that all meet at is lost,
    and a scheduler starts both again: still the same run."""
    one, other = two_hosts

    first, second = launch.start(one), launch.start(other)
    until(lambda: launch.at(ranks=2, step=12), first, second)
    second.lose()
    until(lambda: launch.at(ranks=1, step=24), first)
    second = launch.start(other)
    until(lambda: launch.at(ranks=2, step=36), first, second)

    first.lose()
    assert second.join() == 21, second.shown
    assert "rank 0 (host n1" in second.shown.splitlines()[-1]
    first, second = launch.start(one), launch.start(other)
    assert first.join() == 0, first.shown
    assert second.join() == 0, second.shown

    assert "were carried out at its first start" in first.shown
    assert {record["ranks"] for record in ledger(launch.output)} == {1, 2}
    same_run(launch.output, alone)


def test_b14_a_node_that_is_asked_to_leave_saves_and_is_not_started_again(two_hosts, launch):
    one, _ = two_hosts
    node = launch.start(one)
    until(lambda: launch.at(ranks=1, step=3), node)
    node.process.terminate()
    assert node.join() == 23, node.shown
    last = len(ledger(launch.output))
    assert (launch.output / "checkpoints" / f"step-{last:08d}").is_dir()


def test_a_mistake_is_not_tried_again(tmp_path, two_hosts, launch):
    """torchrun would start the ranks again, whatever they end with."""
    one, _ = two_hosts
    (tmp_path / "bad.jsonl").write_text('{"neither": "nor"}\n')
    node = launch.start(one, "--data.train", str(tmp_path / "bad.jsonl"))
    assert node.join() == 11, node.shown
    assert "DataError" in node.shown.splitlines()[-1]
