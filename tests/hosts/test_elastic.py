"""B11: nodes come and go under `gradacc train --nodes MIN:MAX`, and the run stays the same run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hosts.network import Host
from launching import ROOT, environment, ledger, train
from test_train import write_rows

pytestmark = pytest.mark.cluster
STEPS = 400
LIMIT_SECONDS = 240


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
        "checkpoint": {"every_steps": 20, "save_model": False},
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

    def __init__(self, host: Host, config: Path, output: Path, port: int, main: str = "n1") -> None:
        self.host = host
        self._shown = output.parent / f"{output.name}-{host.name}.txt"
        words = ["train", "--config", str(config), "--nodes", "1:2", "--ranks", "1", "--cpu"]
        said = {"MASTER_ADDR": main, "MASTER_PORT": str(port), "GRADACC_LAUNCH_ID": output.name}
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
        self.host.end_processes()
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


def ranks_at_the_end(output: Path) -> tuple[int, int]:
    """Ranks and step of the ledger's last line."""
    if not (output / "ledger.jsonl").exists():
        return 0, 0
    records = ledger(output)
    return (records[-1]["ranks"], records[-1]["step"]) if records else (0, 0)


def same_run(output: Path, alone: list[dict]) -> None:
    """ids and denominators exactly; gradient norms to fp32 rounding that 400 steps let grow."""
    records = ledger(output)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    for ours, theirs in zip(records, alone, strict=True):
        for exact in ("example_ids_sha256", "supervised_tokens", "learning_rate"):
            assert ours[exact] == theirs[exact]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_b11_a_node_is_lost_and_another_joins(config, alone, two_hosts):
    one, other = two_hosts
    output = config.parent / "shrinks_and_grows"
    port = one.free_port(sys.executable)
    first, second = Node(one, config, output, port), Node(other, config, output, port)
    until(lambda: ranks_at_the_end(output)[0] == 2 and ranks_at_the_end(output)[1] > 45, first)
    second.lose()
    until(lambda: ranks_at_the_end(output)[0] == 1, first)
    again = Node(other, config, output, port)
    until(lambda: ranks_at_the_end(output)[0] == 2, first, again)
    assert first.join() == 0, first.shown
    assert again.join() == 0, again.shown
    used = [record["ranks"] for record in ledger(output)]
    assert set(used) == {1, 2}
    same_run(output, alone)
