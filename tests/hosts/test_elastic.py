"""B11: nodes come and go under `gradacc train --nodes MIN:MAX`, and the run stays the same run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hosts.network import Host
from launching import ROOT, environment, ledger, train
from test_train import write_rows

pytestmark = pytest.mark.cluster
STEPS = 90
LIMIT_SECONDS = 400
LAUNCH = "comes_and_goes"


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

    def __init__(self, host: Host, config: Path, output: Path, port: int) -> None:
        self.host = host
        self._shown = output.parent / f"{output.name}-{host.name}.txt"
        words = ["train", "--config", str(config), "--nodes", "1:2", "--ranks", "1", "--cpu"]
        said = {"MASTER_ADDR": "n1", "MASTER_PORT": str(port), "GRADACC_LAUNCH_ID": output.name}
        with self._shown.open("a") as shown:
            self.process = subprocess.Popen(
                host.command(
                    [sys.executable, "-m", "launcher", *words, "--run.output_dir", str(output)]
                ),
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


def at(output: Path, ranks: int, step: int) -> bool:
    """Whether the last step taken was by so many ranks, and that far at least."""
    if not (output / "ledger.jsonl").exists() or not (records := ledger(output)):
        return False
    return records[-1]["ranks"] == ranks and records[-1]["step"] >= step


def same_run(output: Path, alone: list[dict]) -> None:
    """ids and denominators exactly; gradient norms to fp32 rounding that so many steps let grow."""
    records = ledger(output)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    for ours, theirs in zip(records, alone, strict=True):
        for exact in ("example_ids_sha256", "supervised_tokens", "learning_rate"):
            assert ours[exact] == theirs[exact]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


@pytest.fixture
def started(config, two_hosts) -> Iterator[Callable[[Host], Node]]:
    """Starts `gradacc train` on a host, for one launch; ends what is left of it."""
    one, _ = two_hosts
    port, nodes = one.free_port(sys.executable), []

    def start(host: Host) -> Node:
        nodes.append(Node(host, config, config.parent / LAUNCH, port))
        return nodes[-1]

    yield start
    for node in nodes:
        node.lose()


def test_b11_nodes_are_lost_and_join(config, alone, two_hosts, started):
    """One is lost, and the run shrinks; one joins, and it grows; the one that all meet at is lost,
    and a scheduler starts both again: still the same run."""
    one, other = two_hosts
    output = config.parent / LAUNCH

    first, second = started(one), started(other)
    until(lambda: at(output, ranks=2, step=12), first, second)
    second.lose()
    until(lambda: at(output, ranks=1, step=24), first)
    second = started(other)
    until(lambda: at(output, ranks=2, step=36), first, second)

    first.lose()
    assert second.join() == 21, second.shown
    assert "gradacc: rank 0 (host n1" in second.shown
    first, second = started(one), started(other)
    assert first.join() == 0, first.shown
    assert second.join() == 0, second.shown

    assert "were carried out at its first start" in first.shown
    assert {record["ranks"] for record in ledger(output)} == {1, 2}
    same_run(output, alone)
