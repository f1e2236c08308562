"""wandb's real client, offline and against a stand-in of its server (C11, B17, B19)."""

import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import yaml
from launching import ledger, run
from observe.records import eval_record, train_record
from observe.wandb_file import Recorded, records
from observe.wandb_server import Server

from gradacc_dist.config.load import load
from gradacc_dist.config.schema import Config, Run, Track
from gradacc_dist.observe.ledger import Ledger
from gradacc_dist.observe.tracker import Tracker, environment

pytestmark = pytest.mark.cluster

KEY = "0123456789abcdef" * 2 + "keycanry"  # the form that wandb takes for a key: 40 characters
ID = "a1b2c3d4"
CANARIES = (KEY, "canary-in-environment", "canary-in-argv")
UNREACHABLE = ("refuses", "stalls", "401", "500")


def write_rows(path: Path, num: int) -> str:
    lengths = np.random.default_rng(0).integers(1, 30, num)
    rows = [{"prompt": f"{n}: ", "completion": " ".join("abcdefg"[:n])} for n in lengths]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wandb") / "canary-in-argv"
    folder.mkdir()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = {
        "model": {"tokenizer": "embedded", "config": {"model_type": "llama", **shape, **heads}},
        "data": {
            "train": write_rows(folder.parent / "train.jsonl", 30),
            "evaluate": write_rows(folder.parent / "held_out.jsonl", 5),
            "max_length": 64,
            "cache_dir": str(folder.parent / "cache"),
        },
        "window": {"examples": 8},
        "schedule": {"steps": 5},
        "evaluate": {"every_steps": 2},
        "checkpoint": {"save_model": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


def train(folder: Path, name: str, mode: str, *flags: str, **variables: str) -> CompletedProcess:
    """A run of the product, as `{name}` beside the configuration."""
    home = folder.parent / f"home-{name}"  # no netrc, no settings of who runs the tests
    home.mkdir()
    variables = {"HOME": str(home), "SECRET": "canary-in-environment", **variables}
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable]
    options = ["--config", str(folder / "run.yaml"), "--track.wandb", mode, *flags]
    output = str(folder.parent / name)
    return run([*command, "-m", "gradacc_dist.train", *options, "--run.output_dir", output])


@pytest.fixture(scope="module")
def untracked(folder) -> list[dict]:
    done = train(folder, "untracked", "off")
    assert done.returncode == 0, done.stderr
    assert not (folder.parent / "untracked" / "wandb").exists()
    return ledger(folder.parent / "untracked")


@pytest.fixture(scope="module")
def offline(folder, untracked) -> tuple[Path, str]:
    """Output folder and what was printed."""
    comparison = ["--objective.denominator", "micro_batch_mean", "--micro_batch.examples", "4"]
    done = train(folder, "offline", "offline", *comparison, WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    return folder.parent / "offline", done.stdout


def what_is_the_same(records: list[dict]) -> list[tuple]:
    exact = ("step", "example_ids_sha256", "supervised_tokens", "loss", "grad_norm")
    return [tuple(record[name] for name in exact) for record in records]


def warnings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("wandb: ")]


def test_an_offline_run_holds_the_ledgers_very_values(offline):
    output, printed = offline
    recorded = Recorded(output)
    train_records, evaluations = ledger(output), ledger(output, "eval")
    assert [row["_step"] for row in recorded.history] == [1, 2, 3, 4, 5]
    for row, record in zip(recorded.history, train_records, strict=True):
        assert row["train/loss"] == record["loss"]
        assert row["train/grad_norm"] == record["grad_norm"]
        assert row["train/learning_rate"] == record["learning_rate"]
        assert row["train/denominator"] == record["terms"]["cross_entropy"]["count"]
        assert row["throughput/tokens_per_second"] == record["tokens_per_second"]
    num_tokens = np.cumsum([record["input_tokens"] for record in train_records])
    assert [row["train/num_tokens"] for row in recorded.history] == num_tokens.tolist()
    seen = {row["_step"]: row["eval/loss"] for row in recorded.history if "eval/loss" in row}
    assert seen == {record["step"]: record["loss"] for record in evaluations}
    assert recorded.exit_code == 0
    assert warnings(printed) == []
    # The table folds long lines.
    assert f"wandbsync{recorded.folder}" in re.sub(r"\s", "", printed)


def test_an_offline_run_says_what_ran(offline):
    output, _ = offline
    recorded = Recorded(output)
    resolved = load(output / "config.resolved.yaml", environ={}).config.model_dump(mode="json")
    told = {name: value for name, value in recorded.config.items() if name != "_wandb"}
    assert told.pop("world") == {"ranks": 1, "engine": "single", "reduction_factor": 1.0}
    assert told == resolved
    assert (recorded.run.project, recorded.run.display_name) == ("gradacc_dist", "offline")
    (state,) = output.glob("checkpoints/step-*/state.json")
    assert json.loads(state.read_text())["tracker_id"] == recorded.run.run_id
    assert list(recorded.run.tags) == ["micro_batch_mean: the historical bug, for comparison"]


def test_c11_b19_nothing_else_is_told_and_nothing_lies_elsewhere(offline, folder):
    output, _ = offline
    files = [path for path in (output / "wandb").rglob("*") if path.is_file()]
    assert len(files) >= 3
    for path in [*files, output / "ledger.jsonl"]:
        for canary in CANARIES:
            assert canary.encode() not in path.read_bytes(), path
    assert KEY not in (output / "config.resolved.yaml").read_text()
    (run_folder,) = output.glob("wandb/offline-run-*")
    assert list((run_folder / "files").iterdir()) == []  # no metadata, requirements, diff, console
    assert not list((folder.parent / "home-offline").rglob("*wandb*"))


@pytest.fixture(scope="module")
def unreachable(folder, untracked) -> dict[str, CompletedProcess]:
    """Runs of the product, all at the same time: they mostly wait."""

    def one(kind: str) -> CompletedProcess:
        with Server(kind) as server:
            return train(folder, kind, "online", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)

    with ThreadPoolExecutor() as pool:
        return dict(zip(UNREACHABLE, pool.map(one, UNREACHABLE), strict=True))


@pytest.mark.parametrize("kind", UNREACHABLE)
def test_b17_c11_a_server_that_is_not_there_changes_nothing(kind, unreachable, untracked, folder):
    done = unreachable[kind]
    output = folder.parent / kind
    assert done.returncode == 0, done.stderr
    assert what_is_the_same(ledger(output)) == what_is_the_same(untracked)
    (warning,) = warnings(done.stdout)
    recorded = Recorded(output)
    assert "not online, CommError: " in warning
    assert f"`wandb sync {recorded.folder}` sends the run later" in warning
    assert f"{output / 'ledger.jsonl'} has every value" in warning
    assert [row["train/loss"] for row in recorded.history] == [row["loss"] for row in untracked]


def test_b17_a_run_kept_offline_is_sent_once(unreachable, untracked, folder):
    recorded = Recorded(folder.parent / "refuses")
    with Server("good") as server:
        variables = [f"WANDB_BASE_URL={server.url}", f"WANDB_API_KEY={KEY}", f"HOME={folder}"]
        for _ in range(2):
            command = ["env", *variables, sys.executable, "-m", "wandb", "sync"]
            done = run([*command, str(recorded.folder)], cwd=folder)  # it leaves logs there
            assert done.returncode == 0, done.stdout + done.stderr
    steps = [row["_step"] for row in server.history]
    assert steps[:5] == [1, 2, 3, 4, 5]
    assert len(steps) == 5


def config_of(output: Path, mode: str = "offline") -> Config:
    track = Track(wandb=mode, project="mine", name="first")
    return Config(run=Run(output_dir=output), track=track)


class Tracked:
    """A tracked run without the training: a ledger, what was said of it, where it is to be seen."""

    def __init__(self, output: Path, mode: str, *steps: int) -> None:
        self.output = output
        self.said: list[str] = []
        self.path = output / "ledger.jsonl"
        self.tracker = Tracker(config_of(output, mode), self.path, ID, self.said.append)
        with Ledger(self.path) as self.ledger, self.tracker:
            self.write(*steps)
            self.midway()

    def write(self, *steps: int) -> None:
        for step in steps:
            self.ledger.write(train_record(step))

    def wait_for(self, what: Callable[[], object]) -> None:
        limit = time.monotonic() + 60
        while not what():
            assert time.monotonic() < limit
            time.sleep(0.1)
            self.tracker.poll()

    def midway(self) -> None:
        """What happens before the run ends."""


@pytest.fixture
def good_server(monkeypatch, tmp_path) -> Iterator[Server]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("SECRET", "canary-in-environment")
    with Server("good") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server


def test_an_online_run_sends_the_same_values(good_server, tmp_path):
    tracked = Tracked(tmp_path, "online", 1, 2, 3)
    assert tracked.said == []
    assert f"{good_server.url}/team/mine/runs/" in tracked.tracker.where
    assert [row["_step"] for row in good_server.history] == [1, 2, 3]
    for row, record in zip(good_server.history, ledger(tmp_path), strict=True):
        assert row["train/loss"] == record["loss"]
    begun = good_server.uploads[0]
    assert (begun["project"], begun["displayName"]) == ("mine", "first")
    sent = json.dumps([good_server.uploads, good_server.history])
    assert "examples_seen" in sent
    assert not any(canary in sent for canary in CANARIES)


def test_b17_a_run_that_goes_on_is_the_same_run_and_sends_no_step_twice(good_server, tmp_path):
    """It ended after step 4, and goes on from a checkpoint of step 2."""
    path = Tracked(tmp_path, "online", 1, 2, 3, 4).path
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    tracked = Tracked(tmp_path, "online", 3, 4, 5, 6)
    assert tracked.said == []
    assert [row["_step"] for row in good_server.history] == [1, 2, 3, 4, 5, 6]
    assert {upload["name"] for upload in good_server.uploads} == {ID}


def test_b17_a_server_that_stalls_midway(good_server, tmp_path):
    class Stalled(Tracked):
        def midway(self) -> None:
            self.wait_for(lambda: self.tracker.where)
            good_server.kind = "stalls"
            self.write(3, 4)

    tracked = Stalled(tmp_path, "online", 1, 2)
    (warning,) = tracked.said
    assert "stopped, TimeoutError: " in warning
    assert f"`wandb sync {tmp_path}/wandb/run-" in warning
    (kept,) = tmp_path.glob("wandb/run-*/run-*.wandb")
    assert len([record for record in records(kept) if record.HasField("history")]) == 4


def patch_client(monkeypatch, folder: Path, text: str) -> None:
    """Have wandb's process run `text` at its start."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(text)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)


def test_b17_a_server_that_refuses_midway(good_server, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")
    faster = (
        "from wandb.sdk.lib.run_stopping import RunStopChecker\n"
        "RunStopChecker.__init__.__kwdefaults__['poll_interval'] = 1\n"
    )
    patch_client(monkeypatch, tmp_path / "patch", faster)

    class Refused(Tracked):
        def midway(self) -> None:
            self.wait_for(lambda: self.tracker.where)
            good_server.kind = "401"
            self.write(3, 4)
            self.wait_for(lambda: self.said)

    tracked = Refused(tmp_path, "online", 1, 2)
    (warning,) = tracked.said
    assert "the server refuses the data, or someone pressed stop there" in warning
    assert f"kept in {tmp_path}/wandb" in warning


def test_without_a_key_the_run_is_kept_offline(good_server, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    tracked = Tracked(tmp_path, "online", 1, 2)
    (warning,) = tracked.said
    assert "not online, UsageError: " in warning
    assert "key" in warning
    assert len(Recorded(tmp_path).history) == 2


def test_c11_a_client_that_fails_midway_is_one_warning(tmp_path, monkeypatch):
    failing = (
        "from wandb.sdk.wandb_run import Run\n"
        "log = Run.log\n"
        "def fail(self, data, step):\n"
        "    if step == 3:\n"
        "        raise RuntimeError('planted')\n"
        "    log(self, data, step=step)\n"
        "Run.log = fail\n"
    )
    patch_client(monkeypatch, tmp_path / "patch", failing)
    tracked = Tracked(tmp_path, "offline", 1, 2, 3, 4, 5)
    (warning,) = tracked.said
    recorded = Recorded(tmp_path)
    assert "stopped, RuntimeError: planted; " in warning
    assert f"wandb sync {recorded.folder}" in warning
    assert [row["_step"] for row in recorded.history] == [1, 2]
    assert len(ledger(tmp_path)) == 5


def test_nan_is_nan_and_a_failed_run_is_a_failed_run(tmp_path):
    path, said = tmp_path / "ledger.jsonl", []

    def fail() -> None:
        with Ledger(path) as written, Tracker(config_of(tmp_path), path, ID, said.append):
            written.write(train_record(1, loss=math.nan))
            written.write(eval_record(1))
            raise KeyError("planted")

    with pytest.raises(KeyError):
        fail()
    recorded = Recorded(tmp_path)
    (row,) = recorded.history
    assert math.isnan(row["train/loss"])
    assert row["eval/loss"] == 3.75
    assert recorded.exit_code == 1
    assert said == []


def test_a_training_that_is_killed_leaves_a_whole_run(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from observe.test_tracker import Tracked\n"
        "class Killed(Tracked):\n"
        "    def midway(self):\n"
        "        self.wait_for(lambda: self.tracker.where)\n"
        "        self.write(3)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Killed(Path(sys.argv[1]), 'offline', 1, 2)\n"
    )
    done = run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent.parent)
    assert done.returncode == -signal.SIGKILL, done.stderr
    limit = time.monotonic() + 60
    while (recorded := Recorded(tmp_path)).exit_code is None:
        assert time.monotonic() < limit
        time.sleep(0.1)
    assert recorded.exit_code == 1
    assert [row["_step"] for row in recorded.history] == [1, 2, 3]


def test_a_process_that_dies_is_one_warning(tmp_path):
    path, said = tmp_path / "ledger.jsonl", []
    with Ledger(path) as written, Tracker(config_of(tmp_path), path, ID, said.append) as tracker:
        written.write(train_record(1))
        os.kill(tracker._process.pid, signal.SIGKILL)
    (warning,) = said
    assert f"its process ended with code {-signal.SIGKILL}" in warning


def test_a_process_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("gradacc_dist.observe.tracker.END_SECONDS", 0.5)
    path, said = tmp_path / "ledger.jsonl", []
    with Ledger(path), Tracker(config_of(tmp_path), path, ID, said.append) as tracker:
        os.kill(tracker._process.pid, signal.SIGSTOP)
    (warning,) = said
    assert "had not sent everything after 0.5 seconds" in warning
    assert tracker._process.returncode == -signal.SIGKILL


def test_a_process_that_cannot_start_is_one_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", str(tmp_path / "nothing"))
    said = []
    with Tracker(config_of(tmp_path), tmp_path / "ledger.jsonl", ID, said.append) as tracker:
        tracker.poll()
    (warning,) = said
    assert "its process did not start: " in warning


def test_the_environment_is_an_allow_list(tmp_path):
    given = {"WANDB_API_KEY": "k", "WANDB_SERVICE": "s", "HF_TOKEN": "t", "HOME": "h", "RANK": "0"}
    passed = environment(tmp_path, {**given, "WANDB_CACHE_DIR": "c"})
    assert passed == {
        "WANDB_API_KEY": "k",
        "WANDB_CACHE_DIR": "c",
        "WANDB_ERROR_REPORTING": "false",
        "HOME": "h",
    }
