"""The promise, across a network: two hosts give the run of one process. Launched as users do."""

import sys
from pathlib import Path

import pytest
import yaml
from hosts.network import run_on_each
from launching import ROOT, accelerate, environment, ledger, program, train
from safetensors.torch import load_file
from test_train import write_rows

pytestmark = pytest.mark.cluster
STEPS = 4
# Six processes import torch on what may be two processors, then train for a second.
LIMIT_SECONDS = 180


@pytest.fixture(scope="module")
def config(tmp_path_factory, hosts_allowed) -> Path:
    """Windows of six micro-batches, dealt to four ranks unevenly; the last one closes the epoch."""
    folder = tmp_path_factory.mktemp("two_hosts")
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, **heads}
    settings = {
        "run": {"seed": 3},
        "model": {"tokenizer": "embedded", "config": sizes},
        "data": {
            "train": str(write_rows(folder / "train.jsonl", 41, seed=0)),
            "evaluate": str(write_rows(folder / "held_out.jsonl", 9, seed=1)),
            "max_length": 128,
            "cache_dir": str(folder / "cache"),
        },
        "window": {"examples": 12},
        "micro_batch": {"examples": 2},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"steps": STEPS},
        "track": {"sample_tokens": 0},
        # A host that fails is a test that fails, soon.
        "engine": {"timeout_seconds": 60},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def alone(config) -> Path:
    """The run of one process, without a launcher."""
    output = config.parent / "alone"
    done = train(config, output)
    assert done.returncode == 0, done.stderr
    return output


def train_on(hosts, engine: str, config: Path, output: Path) -> dict[str, str]:
    """The same command on each host, but for its number. Returns what each printed."""
    first, *_ = hosts
    meet = ("--main_process_ip", first.name, "--main_process_port", first.free_port(sys.executable))
    commands = {}
    for number, host in enumerate(hosts):
        flags = ("--machine_rank", number, *meet, "--num_processes", 4)
        launch = accelerate(f"multinode_cpu_{engine}", *map(str, flags))
        commands[host] = [*launch, *program(config, output)]
    done = run_on_each(commands, LIMIT_SECONDS, env=environment(), cwd=ROOT)
    for name, ended in done.items():
        assert ended.returncode == 0, f"{name}: {ended.stderr}"
    return {name: ended.stdout for name, ended in done.items()}


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2"])
def test_two_hosts_with_two_ranks_each_are_one_process(engine, config, alone, two_hosts):
    """ids and denominators exactly; loss and gradient norm to fp32 rounding (6e-8 a sum of
    thousands of products, grown a little by each step's new weights)."""
    output = config.parent / engine
    before = [host.traffic_bytes() for host in two_hosts]
    printed = train_on(two_hosts, engine, config, output)
    after = [host.traffic_bytes() for host in two_hosts]

    assert "2 (n1: 2 rank(s), n2: 2 rank(s))" in " ".join(printed["n1"].split())
    assert printed["n2"] == ""
    for ours, theirs in zip(ledger(output), ledger(alone), strict=True):
        assert (ours["engine"], ours["ranks"], theirs["ranks"]) == (engine, 4, 1)
        for exact in ("example_ids_sha256", "supervised_tokens", "input_tokens", "learning_rate"):
            assert ours[exact] == theirs[exact]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-5)
    (ours,), (theirs,) = ledger(output, "eval"), ledger(alone, "eval")
    assert ours["supervised_tokens"] == theirs["supervised_tokens"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-6)

    # Whatever the engine: what a host's ranks found cannot reach the other's weights, and the sum
    # come back to its own, in less than one set of gradients a step each way.
    weights = load_file(output / "model" / "model.safetensors").values()
    gradient_bytes = 4 * sum(weight.numel() for weight in weights)
    for host_before, host_after in zip(before, after, strict=True):
        for earlier, later in zip(host_before, host_after, strict=True):
            assert later - earlier >= STEPS * gradient_bytes
