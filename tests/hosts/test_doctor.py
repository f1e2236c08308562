"""Faults that are planted in one of two hosts are found and named, before a rank starts; a healthy
pair is measured, and trains."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hosts.network import HOSTS_FILES, Host, run_on_each
from launching import ROOT, environment, ledger
from test_train import write_rows

pytestmark = pytest.mark.cluster
# Four processes import torch on what may be two processors.
LIMIT_SECONDS = 240

Ended = Mapping[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def config(tmp_path_factory, hosts_allowed) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, **heads}
    settings = {
        "run": {"output_dir": str(folder / "out")},
        "model": {"tokenizer": "embedded", "config": sizes},
        "data": {
            "train": str(write_rows(folder / "train.jsonl", 24, seed=0)),
            "max_length": 128,
            "cache_dir": str(folder / "cache"),
        },
        "window": {"examples": 8},
        "micro_batch": {"examples": 2},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"steps": 2},
        "track": {"sample_tokens": 0},
        # Ranks that do not reach each other are a test that says so, soon.
        "engine": {"timeout_seconds": 30},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


def gradacc(command: str, rank: int, first: Host, port: int, *words: object) -> list[str]:
    """The command of one host, as a scheduler would start it there."""
    said = {
        "NNODES": 2,
        "NODE_RANK": rank,
        "MASTER_ADDR": first.name,
        "MASTER_PORT": port,
        "GRADACC_NODES": "n1,n2",
        "GRADACC_LAUNCH_ID": "test",
    }
    program = [sys.executable, "-m", "launcher", command, "--cpu"]
    return ["env", *(f"{name}={value}" for name, value in said.items()), *program, *map(str, words)]


def on_both(
    hosts: tuple[Host, Host], command: str, *words: object, second: tuple[object, ...] = ()
) -> Ended:
    """The same on each; `second`: words that only the second is given."""
    first, other = hosts
    port = first.free_port(sys.executable)
    commands = {
        first: gradacc(command, 0, first, port, *words),
        other: gradacc(command, 1, first, port, *words, *second),
    }
    return run_on_each(commands, LIMIT_SECONDS, env=environment(), cwd=ROOT)


def assert_all_say(done: Ended, exit_code: int, *texts: str) -> None:
    for name, ended in done.items():
        shown = f"{name}: {ended.stdout}\n{ended.stderr}"
        assert ended.returncode == exit_code, shown
        for text in texts:
            assert text in ended.stderr, shown
        assert "Traceback" not in ended.stderr, shown


def test_a_healthy_pair_is_measured(two_hosts, config):
    done = on_both(two_hosts, "doctor", "--config", config, "--ranks", 2)
    assert_all_say(done, 0, "2 of 2 nodes here")
    printed = done["n1"].stdout
    assert re.search(r"^n1, clock \+0\.00 s$", printed, re.M)
    assert re.search(r"^n2, clock [+-]0\.\d\d s$", printed, re.M)
    assert printed.count("  ok       hostname       n") == 2
    assert "  error" not in printed
    assert re.search(r"^ +16 MB: [\d.,]+ ms, [1-9][\d,]* MB/s$", printed, re.M)
    for rank, host in enumerate(["n1", "n1", "n2", "n2"]):
        assert re.search(rf"^rank {rank} \(host {host}\): [1-9][\d,]* MB/s$", printed, re.M)
    assert re.search(r"^slowest: rank \d \(host n[12]\) with ", printed, re.M)
    assert done["n2"].stdout == ""
    assert not (config.parent / "out").exists(), "the doctor leaves nothing"


@pytest.mark.parametrize("leads_to", ["127.0.1.1", "10.77.0.99", ""])
def test_a_wrong_hostname(two_hosts, config, leads_to):
    """To loopback, as Debian's installer writes it; to somebody else's address; nowhere."""
    first, other = two_hosts
    lines = ["127.0.0.1 localhost", f"{first.address} {first.name}"]
    lines += [f"{leads_to} {other.name}"] if leads_to else []
    (HOSTS_FILES / other.namespace / "hosts").write_text("\n".join(lines) + "\n")
    done = on_both(two_hosts, "doctor", "--config", config)
    where = f"leads to {leads_to}" if leads_to else "does not resolve there"
    assert_all_say(done, 10, f"error: n2: its own name, n2, {where}", "GLOO_SOCKET_IFNAME=eth0")
    assert "error    hostname       n2 -> " in done["n1"].stdout


@pytest.mark.parametrize(
    ("blocks", "rule", "said"),
    [
        # Answers get lost: what a firewall that drops looks like from outside.
        ("n1", ("sport", "blackhole"), "does not answer: a firewall may block the port"),
        ("n2", ("dport", "prohibit"), "cannot be reached (Permission denied): a firewall"),
    ],
)
def test_a_blocked_port(two_hosts, config, blocks, rule, said):
    first, other = two_hosts
    port = first.free_port(sys.executable)
    (blocker,) = (host for host in two_hosts if host.name == blocks)
    side, action = rule
    add = f"ip rule add ipproto tcp {side} {port} {action}"
    done = blocker.run(["sh", "-c", add])
    assert done.returncode == 0, done.stderr
    words = ("--config", config, "--join-seconds", 12)
    done = run_on_each(
        {
            first: gradacc("doctor", 0, first, port, *words),
            other: gradacc("doctor", 1, first, port, *words),
        },
        LIMIT_SECONDS,
        env=environment(),
        cwd=ROOT,
    )
    assert_all_say(done, 21)
    assert re.search(r"gradacc: 1 of 2 nodes here after \d+ s; missing: n2", done["n1"].stderr)
    said_by_guest = done["n2"].stderr
    cause = re.escape(f"n1:{port} {said}")
    assert re.search(rf"gradacc: waiting for node 0 since \d+ s: {cause}", said_by_guest)
    assert re.search(rf"node 0 was not reached within 12 s: {cause}", said_by_guest)


def test_ports_that_are_blocked_but_for_the_one(two_hosts, config):
    """The nodes meet; their ranks, whose ports the kernel chooses, would not."""
    first, other = two_hosts
    port = first.free_port(sys.executable)
    rules = [
        f"ip rule add pref 10 ipproto tcp sport {port} lookup main",
        f"ip rule add pref 11 ipproto tcp dport {port} lookup main",
        f"ip rule add pref 12 to {other.address} ipproto tcp prohibit",
    ]
    done = first.run(["sh", "-c", " && ".join(rules)])
    assert done.returncode == 0, done.stderr
    words = ("--config", config)
    done = run_on_each(
        {
            first: gradacc("doctor", 0, first, port, *words),
            other: gradacc("doctor", 1, first, port, *words),
        },
        LIMIT_SECONDS,
        env=environment(),
        cwd=ROOT,
    )
    text = f"error: n2: does not reach n1 ({first.address}) at a port that the kernel chose: "
    assert_all_say(done, 10, text, "not MASTER_PORT alone")


def test_another_configuration_on_one_host(two_hosts, config):
    for command in ("doctor", "train"):
        words = ("--config", config)
        done = on_both(two_hosts, command, *words, second=("--window.examples", 12))
        assert_all_say(done, 10, "error: n2: window.examples: 12 here, 8 on n1; give every node")
    assert "12 here, 8 on n1" in done["n1"].stderr
    assert not (config.parent / "out" / "ledger.jsonl").exists()


def test_a_full_disk_on_one_host(two_hosts, config, tmp_path):
    """A small disk that only the second host sees."""
    first, other = two_hosts
    port = first.free_port(sys.executable)
    words = ("--config", config, "--run.output_dir", tmp_path)
    mount = ["sh", "-c", 'mount -t tmpfs -o size=4m small "$0" && exec "$@"', str(tmp_path)]
    done = run_on_each(
        {
            first: gradacc("doctor", 0, first, port, *words),
            other: [*mount, *gradacc("doctor", 1, first, port, *words)],
        },
        LIMIT_SECONDS,
        env=environment(),
        cwd=ROOT,
    )
    text = f"error: n2: run.output_dir, {tmp_path} (disk {tmp_path}): 4,194,304 bytes free"
    assert_all_say(done, 10, text)
    assert "error: n1" not in done["n1"].stderr


def test_c4_a_node_that_never_comes_is_named(two_hosts, config):
    first, _ = two_hosts
    words = ("--config", config, "--join-seconds", 12)
    done = first.run(
        gradacc("train", 0, first, first.free_port(sys.executable), *words),
        LIMIT_SECONDS,
        env=environment(),
        cwd=ROOT,
    )
    assert_all_say({"n1": done}, 21)
    assert re.search(r"gradacc: 1 of 2 nodes here after \d+ s; missing: n2", done.stderr)
    assert done.stderr.rstrip().endswith("or with a longer --join-seconds")


def test_two_hosts_train_after_the_roll_call(two_hosts, config, tmp_path):
    words = ("--config", config, "--ranks", 2, "--run.output_dir", tmp_path)
    done = on_both(two_hosts, "train", *words)
    assert_all_say(done, 0, "2 of 2 nodes here")
    records = ledger(tmp_path)
    assert [record["ranks"] for record in records] == [4, 4]
    assert "2 (n1: 2 rank(s), n2: 2 rank(s))" in " ".join(done["n1"].stdout.split())


def test_c8_the_first_cause_is_the_last_line(two_hosts, config, tmp_path):
    """Of a mistake in the data, which only the ranks read."""
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "compl\n')
    words = ("--config", config, "--data.train", broken, "--run.output_dir", tmp_path / "out")
    done = on_both(two_hosts, "train", *words)
    for ended in done.values():
        assert ended.returncode == 11, ended.stderr
        last = ended.stderr.rstrip().splitlines()[-1]
        # Both meet it, and both say which of them was first.
        assert re.match(r"gradacc: rank (0 \(host n1|1 \(host n2), process ", last), last
        assert f"DataError: {broken}" in last, last
        assert last.endswith("[exit code 11]")
