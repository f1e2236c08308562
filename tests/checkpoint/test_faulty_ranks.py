"""B5: the disk fails under one of two ranks, in its system calls, while both train on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import patch

import pytest
from checkpoint.faults import injected
from checkpoint.running import STEPS, Ran, read, run, saved_steps
from distributed.legs import STEPS as STEPS_OF_LEGS
from distributed.legs import leg, write_config

from gradacc_dist import training
from gradacc_dist.checkpoint.verify import verify
from gradacc_dist.errors import DiskError, GradaccError

pytestmark = pytest.mark.cluster

SAVES = {"every_minutes": None, "every_steps": 2}
SAVING = "checkpoints/step-00000004.saving"
SAID = {"ENOSPC": "No space left on device", "EIO": "Input/output error"}
# What a rank does on its own in a save, by the call and what it is of: "" is the folder.
CALLS = [
    (0, "mkdir", ""),
    (0, "write", "weights-00000.safetensors"),
    (0, "fsync", "optimizer-00000.safetensors"),
    (0, "write", "state.json"),
    (0, "openat", "manifest.json"),
    (0, "rename", ""),
    (1, "openat", "weights-00001.safetensors"),
    (1, "write", "weights-00001.safetensors"),
    (1, "fsync", "optimizer-00001.safetensors"),
]


def pid_of(world) -> int:
    return os.getpid()


def run_with_fault(pools, folder: Path, call, error: str, policy: str) -> list[Ran]:
    rank, name, file = call
    pid = pools[2].run(pid_of)[rank]
    with injected(pid, folder / SAVING / file, f"{name}:error={error}"):
        return pools[2].run(run, folder, {**SAVES, "on_error": policy}, "ddp")


@pytest.mark.parametrize("error", SAID)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_b5_a_fault_on_one_rank_is_met_by_all(pools, tmp_path, call, error):
    """They agree, the checkpoint before is intact, and nothing has the final name but what is
    whole; the policy decides whether they train on."""
    rank, _, file = call
    stopped = run_with_fault(pools, tmp_path / "stop", call, error, "stop")
    assert len({(ran.steps, str(ran.error), ran.newest) for ran in stopped}) == 1
    assert stopped[0].newest == tmp_path / "stop" / "checkpoints" / "step-00000002"
    assert saved_steps(tmp_path / "stop") == [2]
    verify(stopped[0].newest)
    assert all(isinstance(ran.error, DiskError) for ran in stopped)
    assert all(ran.error.same_on_all_ranks for ran in stopped)

    went_on = run_with_fault(pools, tmp_path / "continue", call, error, "continue")
    assert [(ran.steps, ran.error) for ran in went_on] == [(STEPS, None)] * 2
    assert saved_steps(tmp_path / "continue") == [2, STEPS]
    assert read(went_on[0].newest)
    (warning,) = (note for note in went_on[0].notes if note.startswith("warning"))

    for message in (str(stopped[0].error), warning):
        assert f"checkpoint at step 4 was not saved: rank {rank} of 2 (host " in message
        assert f"cannot be written: {SAID[error]} (disk /" in message
        assert (f"/{SAVING}/{file}: " if file else "/checkpoints") in message
        assert " bytes free); free some space there" in message
        assert (" bytes needed, " in message) == bool(file)


def train_until_it_fails(world, config, output) -> tuple[GradaccError | None, int]:
    """The error, and how many windows this rank has trained on."""
    with patch.object(training, "train_step", side_effect=training.train_step) as steps:
        try:
            leg(world, config, output, "ddp", 3, STEPS_OF_LEGS)
        except GradaccError as error:
            return error, steps.call_count
    return None, steps.call_count


@pytest.mark.parametrize("first", [3, STEPS_OF_LEGS])
def test_a_ledger_that_cannot_be_written_ends_every_rank(pools, tmp_path, first):
    """Line `first` and those after it are lost. The others do not wait for rank 0 until a
    collective times out: they learn of it with the next window, leave with its exit code, and no
    checkpoint speaks of the line."""
    config, path = write_config(tmp_path), tmp_path / "run" / "ledger.jsonl"
    pid = pools[2].run(pid_of)[0]
    with injected(pid, path, f"write:error=ENOSPC:when={first}+"):
        ended = pools[2].run(train_until_it_fails, str(config), str(path.parent))
    errors, num_steps = zip(*ended, strict=True)
    assert set(num_steps) == {min(first + 1, STEPS_OF_LEGS)}
    assert [error.exit_code for error in errors] == [DiskError.exit_code] * 2
    assert f"{path}: cannot be written: No space left on device (disk /" in str(errors[0])
    assert "rank 0 failed" in str(errors[1])
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == list(range(1, first))
    assert not list(path.parent.glob("checkpoints/step-*"))
