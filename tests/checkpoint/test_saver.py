"""Saving while training goes on: what, when, and what becomes of a disk that fails (B5)."""

import signal
from functools import partial

import pytest
import torch
from checkpoint.running import CASE, STEPS, Ran, on_rank, read, run, saved_steps
from distributed.cases import Case

from gradacc_dist.errors import DiskError, NonFiniteError, PreemptedError

NEVER = {"every_minutes": None}


@pytest.mark.parametrize(
    ("ranks", "engine"), [(2, "ddp"), (4, "ddp"), (2, "fsdp2"), (4, "fsdp2"), (1, "single")]
)
def test_what_is_saved_is_what_training_changed(pools, tmp_path, ranks, engine):
    folder = tmp_path / "run"
    results = pools[ranks].run(run, folder, NEVER, engine)
    assert saved_steps(folder) == [STEPS]
    tensors = read(results[0].newest)
    for ran in results:
        assert ran.error is None
        assert ran.newest == folder / "checkpoints" / f"step-{STEPS:08d}"
        assert tensors.keys() == ran.state.keys()
        for name, value in ran.state.items():
            assert torch.equal(tensors[name], value), name
            assert tensors[name].dtype == value.dtype


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_bytes(pools, tmp_path, ranks):
    """P9: no rank copies more than its part and one tensor."""
    results = pools[ranks].run(run, tmp_path / "run", NEVER, "ddp")
    largest = max(v.numel() * v.itemsize for v in results[0].state.values())
    total = sum(v.numel() * v.itemsize for v in results[0].state.values())
    assert {ran.share_bytes[1] for ran in results} == {total}
    assert sum(ran.share_bytes[0] for ran in results) == total
    assert max(ran.share_bytes[0] for ran in results) <= total / ranks + largest


def test_memory_is_allocated_at_the_first_save_and_kept(pools, tmp_path):
    (ran, _) = pools[2].run(run, tmp_path / "run", {**NEVER, "every_steps": 3}, "ddp")
    assert ran.memory_bytes[:2] == [0, 0]
    assert len(set(ran.memory_bytes[2:])) == 1
    assert ran.memory_bytes[2] > 0


def test_a_save_due_while_one_is_under_way_waits_for_it(pools, tmp_path):
    folder = tmp_path / "run"
    (ran, other) = pools[2].run(run, folder, {**NEVER, "every_steps": 1, "keep_every_steps": 2})
    told = [note.split(":")[0] for note in ran.notes]
    assert told == [f"checkpoint at step {step}" for step in range(1, STEPS + 1)]
    assert all("training waited" in note for note in ran.notes)
    assert other.notes == []
    assert saved_steps(folder) == [2, 4, 5, 6]


def test_saves_cost_no_collective_per_step(pools, tmp_path):
    """An all-reduce for the agreement ahead, one for the loss, and nothing else; a save adds one
    of each, to learn whether rank 0 can vouch for the ledger, and for the hashes of its shards,
    whatever the number of steps it takes."""
    long = Case((9,) * 4, (1.0,) * 4, window=4, steps=40, dtype="float32")
    policy = {**NEVER, "every_steps": 10}
    for ran in pools[2].run(run, tmp_path / "run", policy, "ddp", (), None, long):
        first, *rest, _ = ran.collectives  # of the last, the final save is waited for
        assert {all_reduces for all_reduces, _ in rest} == {2, 3}
        assert sum(all_reduces - 2 for all_reduces, _ in rest) == 3
        assert sum(gathers for _, gathers in rest) == 3
        assert first[1] == 0


def test_every_minutes_is_by_the_clock_of_rank_0(pools, tmp_path):
    always, never = {"every_minutes": 1e-9}, {"every_minutes": 1e9}
    (ran, _) = pools[2].run(run, tmp_path / "a", always, "ddp", (), None, CASE, never)
    assert len(ran.notes) == STEPS
    (ran, _) = pools[2].run(run, tmp_path / "b", never, "ddp", (), None, CASE, always)
    assert len(ran.notes) == 1  # at the end


@pytest.mark.parametrize("failing", [(0,), (1,), (0, 1)])
def test_b5_a_failing_disk_stops_every_rank_at_the_same_step(pools, tmp_path, failing):
    folder = tmp_path / "run"
    results = pools[2].run(run, folder, {**NEVER, "every_steps": 2}, "ddp", failing)
    assert len({ran.steps for ran in results}) == 1
    assert results[0].steps < STEPS
    for ran in results:
        assert isinstance(ran.error, DiskError)
        assert ran.error.same_on_all_ranks
        for rank in range(2):
            assert (f"rank {rank} of 2 (host" in str(ran.error)) == (rank in failing)
        for words in ("step 2", "No space left", "(disk ", "bytes needed", "bytes free"):
            assert words in str(ran.error)
    assert str(results[0].error) == str(results[1].error)
    assert saved_steps(folder) == []  # nothing under a final name, nothing left behind


@pytest.mark.parametrize("failing", [(0,), (1,)])
def test_b5_training_goes_on_where_the_policy_says_so(pools, tmp_path, failing):
    folder = tmp_path / "run"
    policy = {**NEVER, "every_steps": 2, "on_error": "continue"}
    results = pools[2].run(run, folder, policy, "ddp", failing)
    for ran in results:
        assert (ran.steps, ran.error, ran.newest) == (STEPS, None, None)
    warnings = results[0].notes
    assert len(warnings) == 3  # each interval tries again
    assert all(text.startswith("warning: checkpoint at step") for text in warnings)
    assert saved_steps(folder) == []


def sigterm_on_rank_1_with_a_full_disk_on_rank_0(pools, folder, policy):
    interfere = on_rank(1, 3, signal.SIGTERM)
    return pools[2].run(run, folder, policy, "ddp", (0,), interfere)


def test_a_run_that_must_leave_does_so_without_a_checkpoint_too(pools, tmp_path):
    policy = {**NEVER, "on_error": "continue"}
    results = sigterm_on_rank_1_with_a_full_disk_on_rank_0(pools, tmp_path / "run", policy)
    for ran in results:
        assert isinstance(ran.error, PreemptedError)
        assert "left after step 3, not saved" in str(ran.error)
    results = sigterm_on_rank_1_with_a_full_disk_on_rank_0(pools, tmp_path / "stop", NEVER)
    assert all(isinstance(ran.error, DiskError) for ran in results)


@pytest.mark.parametrize("rank", [0, 1])
def test_b14_sigterm_to_one_rank_ends_all_at_that_step(pools, tmp_path, rank):
    folder = tmp_path / "run"
    interfere = on_rank(rank, 3, signal.SIGTERM)
    for ran in pools[2].run(run, folder, NEVER, "ddp", (), interfere):
        assert isinstance(ran.error, PreemptedError)
        assert ran.error.same_on_all_ranks
        assert f"SIGTERM to rank {rank} of 2" in str(ran.error)
        assert "left after step 3, saved in" in str(ran.error)
        assert ran.steps == 3
    assert saved_steps(folder) == [3]


def test_b14_sigterm_during_a_save_saves_once_more(pools, tmp_path):
    folder = tmp_path / "run"
    interfere = on_rank(1, 3, signal.SIGTERM)
    for ran in pools[2].run(run, folder, {**NEVER, "every_steps": 2}, "ddp", (), interfere):
        assert isinstance(ran.error, PreemptedError)
    assert saved_steps(folder) == [2, 3]


@pytest.mark.parametrize("rank", [0, 1])
def test_sigusr1_saves_once_and_goes_on(pools, tmp_path, rank):
    folder = tmp_path / "run"
    interfere = on_rank(rank, 2, signal.SIGUSR1)
    for ran in pools[2].run(run, folder, NEVER, "ddp", (), interfere):
        assert (ran.error, ran.steps) == (None, STEPS)
    assert saved_steps(folder) == [2, STEPS]


def test_a_signal_in_a_window_without_items_is_heard(pools, tmp_path):
    """A11: such a window has no loss that could carry the news."""
    empty = Case((9,) * 4, (0.0,) * 4, window=4, steps=4, dtype="float32")
    interfere = on_rank(1, 2, signal.SIGTERM)
    for ran in pools[2].run(run, tmp_path / "run", NEVER, "ddp", (), interfere, empty):
        assert isinstance(ran.error, PreemptedError)
        assert ran.steps == 2


def spoil(at, world, window, signals):
    """All ranks meet the same mistake, during `at`."""
    if window.step == at:
        raise NonFiniteError("spoilt", same_on_all_ranks=True)


def test_a_run_that_all_ranks_stop_completes_the_save_under_way(pools, tmp_path):
    folder = tmp_path / "run"
    policy = {**NEVER, "every_steps": 2}
    for ran in pools[2].run(run, folder, policy, "ddp", (), partial(spoil, 3)):
        assert isinstance(ran.error, NonFiniteError)
    assert saved_steps(folder) == [2]


def test_a_bug_in_the_background_is_not_taken_for_a_full_disk(pools, tmp_path):
    with pytest.raises(AssertionError, match="dtype of nobody"):
        pools[1].run(run_with_a_bug, tmp_path / "run")


def run_with_a_bug(world, folder) -> Ran:
    from unittest import mock

    from gradacc_dist.checkpoint import save

    with mock.patch.object(save, "write_shard", side_effect=AssertionError("dtype of nobody")):
        return run(world, folder, NEVER)
