"""B14: asked to leave, a run does so with a checkpoint; B4, B5 and the ends of a run, by real
processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from launching import LIMIT_SECONDS, ROOT, environment, launcher, ledger, program, train
from safetensors import safe_open
from test_train import write_rows

from gradacc_dist.checkpoint.store import Store

pytestmark = pytest.mark.cluster

# Long enough that no test sees the end of it.
ENDLESS = ("--schedule.steps", "100000")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("preemption")
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, **heads}
    settings = {
        "model": {"tokenizer": "embedded", "config": sizes},
        "data": {
            "train": str(write_rows(folder / "train.jsonl", 70, seed=0)),
            "max_length": 128,
            "cache_dir": str(folder / "cache"),
        },
        "window": {"examples": 8},
        "micro_batch": {"examples": 4},
        "schedule": {"steps": 6},
        "track": {"sample_tokens": 0},
        "engine": {"timeout_seconds": 200},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder / "run.yaml"


class Running:
    """A run that was started as users do. `pid` is the launcher's."""

    def __init__(self, process: subprocess.Popen, output: Path, shown: Path) -> None:
        self.process = process
        self.output = output
        self._shown = shown

    @property
    def shown(self) -> str:
        return self._shown.read_text()

    def until(self, happened: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while not happened():
            assert self.process.poll() is None, self.shown
            assert time.monotonic() < end, self.shown
            time.sleep(0.05)

    def until_step(self, step: int) -> None:
        path = self.output / "ledger.jsonl"
        self.until(lambda: path.exists() and path.read_bytes().count(b"\n") >= step)

    def rank(self, rank: int) -> int:
        """The process of a rank, once it is one of the launcher's children."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [pid for pid in children(self.process.pid) if rank_of(pid) == rank]
            return bool(found)

        self.until(look)
        return found[0]

    def end(self) -> int:
        return self.process.wait(timeout=LIMIT_SECONDS)


def children(pid: int) -> list[int]:
    return [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in read(t / "children")]


def read(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:  # has just ended
        return []


def rank_of(pid: int) -> int | None:
    try:
        parts = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(part[5:]) for part in parts if part.startswith(b"RANK=")), None)


@contextmanager
def started(command: list[str], output: Path) -> Iterator[Running]:
    shown = output.with_suffix(".out")
    with shown.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield Running(process, output, shown)
    finally:
        for pid in children(process.pid) if process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


def start(
    config: Path,
    output: Path,
    *flags: str,
    name: str = "python",
    ranks: int = 1,
    slow: bool = False,
):
    rest = program(config, output, *ENDLESS, *flags)
    if slow:
        rest = [str(slow_disk(config.parent)), *rest[2:]]
    return started([*launcher(name, ranks), *rest], output)


def slow_disk(folder: Path) -> Path:
    """The training program on a disk that takes its time."""
    path = folder / "slow_disk.py"
    path.write_text(
        "import sys, time\n"
        "from gradacc_dist.checkpoint import disk\n"
        "from gradacc_dist.train import main\n"
        "write = disk._write_all\n"
        "def slow(file, chunk):\n"
        "    time.sleep(0.1)\n"
        "    write(file, chunk)\n"
        "disk._write_all = slow\n"
        "sys.exit(main())\n"
    )
    return path


def checkpoint_of(run: Running) -> int:
    """The step of the newest checkpoint, which is whole, and vouches for the ledger as it is."""
    newest, passed_over = Store(run.output / "checkpoints").newest_complete()
    assert newest is not None
    assert not passed_over
    state = json.loads((newest.folder / "state.json").read_text())
    steps = [record["step"] for record in ledger(run.output)]
    assert steps == list(range(1, state["step"] + 1))
    assert state["ledger_bytes"] == (run.output / "ledger.jsonl").stat().st_size
    assert not list((run.output / "checkpoints").glob("*.saving"))
    return state["step"]


def left_in_order(run: Running) -> None:
    """One message, which names the step and the checkpoint; no traceback of ours."""
    step = checkpoint_of(run)
    assert run.shown.count("PreemptedError") == 1
    assert f"left after step {step}, saved in" in run.shown
    assert f"step-{step:08d}; the same command goes on from there" in run.shown
    assert 'gradacc_dist/training.py"' not in run.shown
    assert not (run.output / "model").exists()


def test_b14_one_process(config, tmp_path):
    with start(config, tmp_path / "run") as run:
        run.until_step(3)
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.end() == 23
        left_in_order(run)


def test_b14_sigterm_to_one_rank(config, tmp_path):
    with start(config, tmp_path / "run", name="torchrun", ranks=2) as run:
        run.until_step(3)
        os.kill(run.rank(1), signal.SIGTERM)
        assert run.end() != 0
        left_in_order(run)
        assert "SIGTERM to rank 1 of 2" in run.shown
        assert "exitcode  : 23" in run.shown


def test_b14_sigterm_to_the_launcher(config, tmp_path):
    """It passes the signal on to all ranks, and kills them 30 seconds later."""
    with start(config, tmp_path / "run", name="accelerate", ranks=2) as run:
        run.until_step(3)
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.end() != 0
        left_in_order(run)


def test_sigusr1_saves_and_b14_sigterm_during_a_save_and_once_more(config, tmp_path):
    """SIGUSR1 saves, and training goes on. Of a second one, the save is under way when a rank is
    asked to leave, and then the launcher: it is completed, and so is one of the last step."""
    with start(config, tmp_path / "run", name="torchrun", ranks=2, slow=True) as run:
        run.until_step(3)
        os.kill(run.rank(1), signal.SIGUSR1)
        run.until(lambda: "checkpoint at step" in run.shown)
        ((first, folder),) = Store(run.output / "checkpoints").candidates()
        with safe_open(folder / "weights-00001.safetensors", "pt") as file:
            assert file.keys()
        run.until_step(first + 3)
        os.kill(run.rank(0), signal.SIGUSR1)
        run.until(lambda: bool(list(run.output.glob("checkpoints/*.saving/weights*"))))
        os.kill(run.rank(1), signal.SIGTERM)
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.end() != 0
        left_in_order(run)
        last, second = (step for step, _ in Store(run.output / "checkpoints").candidates())
        assert first < second < last


@pytest.mark.parametrize(("name", "ranks"), [("python", 1), ("torchrun", 2)])
def test_b14_while_tokenising_a_run_leaves_at_once(config, tmp_path, name, ranks):
    rows = write_rows(tmp_path / "many.jsonl", 150_000, seed=0)
    flags = ("--data.train", str(rows), "--data.cache_dir", str(tmp_path / "cache"))
    with start(config, tmp_path / "run", *flags, name=name, ranks=ranks) as run:
        run.until(lambda: "tokenised" in run.shown)
        os.kill(run.rank(1) if ranks == 2 else run.process.pid, signal.SIGTERM)
        code = run.end()
        assert code == 23 if ranks == 1 else "exitcode  : 23" in run.shown
        assert list((tmp_path / "cache" / "tokens").glob("*.making"))  # it did not go on to its end
        assert "SIGTERM before the first step" in run.shown
        assert 'gradacc_dist/training.py"' not in run.shown  # no traceback of ours
        assert not run.output.exists()


def test_a_run_can_end_before_its_schedule(config, tmp_path):
    done = train(config, tmp_path / "run", "--run.stop_after_steps", "4")
    assert done.returncode == 0, done.stderr
    assert "Stopped after step 4 of 6" in done.stdout
    assert "the same command without it goes on" in done.stdout
    assert "checkpoints/step-00000004/" in done.stdout.replace("\n", "").replace(" ", "")
    assert len(ledger(tmp_path / "run")) == 4
    assert not (tmp_path / "run" / "model").exists()


def test_b4_too_little_space_is_said_before_the_first_step(config, tmp_path):
    """As many checkpoints, kept for ever, as fit on no disk."""
    flags = ("--schedule.steps", "10000000", "--checkpoint.keep_every_steps", "1")
    done = train(config, tmp_path / "run", *flags, name="torchrun", ranks=2)
    free = shutil.disk_usage(tmp_path).free
    assert "exitcode  : 25" in done.stderr
    assert done.stderr.count("DiskError") == 1
    assert "bytes needed" in done.stderr
    assert f"{free // 10**9:,}"[:1] in done.stderr
    assert "step 1/" not in done.stdout
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
