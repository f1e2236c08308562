"""Which jobs go back into the queue, and which never (B15)."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from gradacc_dist.errors import ConfigError
from gradacc_dist.exits import Exit
from launcher import slurm_after
from launcher.launches import LaunchFolder, Outcome
from launcher.slurm_after import MAX_PREEMPTED, Progress, Try, after
from launcher.slurm_script import TRY_AGAIN


class Tries:
    """The tries of one job, of two nodes with one rank each."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = LaunchFolder.of(output, "id")
        self.folder.path.mkdir(parents=True)

    def save(self, step: int) -> None:
        (self.output / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)

    def end(
        self, attempt: int, *codes: int | None, status: int = 1, asked: bool = False, **more
    ) -> int:
        """Of ranks that left with `codes`; None for one that was killed."""
        exits = self.folder.exits / str(attempt)
        exits.mkdir(parents=True)
        for rank, code in enumerate(codes):
            ended = None if code is None else 20.0 + rank
            error = f"Error{code}" if code else None
            note = Exit(
                rank=rank,
                host=f"n{rank + 1}",
                pid=7,
                began=10.0,
                ended=ended,
                exit_code=code,
                error=error,
                is_ours=bool(code) and code != 1,
                **({"ranks": len(codes)} | more),
            )
            (exits / f"{rank}.json").write_text(json.dumps(asdict(note)))
        this = Try(job_id="12", attempt=attempt, began=time.time(), status=status, asked=asked)
        return after(self.folder, this)

    def say(self, code: int, seconds: float) -> None:
        """As `gradacc train` of the first node does, so long after the next try will have begun."""
        self.folder.write_outcome(Outcome(code, f"cause {code}", time.time() + seconds))

    @property
    def outcome(self) -> tuple[int, int]:
        """Exit code and restarts."""
        noted = self.folder.read_outcome()
        assert noted is not None
        return noted.exit_code, noted.restarts


@pytest.fixture
def tries(tmp_path, monkeypatch) -> Tries:
    monkeypatch.setattr(slurm_after, "may_requeue", lambda job_id: job_id == "12")
    return Tries(tmp_path / "run")


@pytest.mark.parametrize("code", [10, 11, 12, 22, 24, 25])
def test_what_would_only_fail_again_is_not_started_again(tries, code):
    assert tries.end(1, code, code) == code
    assert tries.outcome == (code, 0)


@pytest.mark.parametrize("codes", [(23, 23), (21, None), (None, None), (1, 21), (20, 20)])
def test_the_others_are(tries, codes):
    assert tries.end(1, *codes) == TRY_AGAIN


def test_a_run_that_ended_well_is_done_whatever_befell_srun(tries):
    assert tries.end(1, 0, 0, status=0) == 0
    assert tries.end(2, 0, 0, status=143) == 0
    assert tries.outcome == (0, 1)


def test_srun_may_end_well_where_a_rank_was_killed_but_not_the_other_way_round(tries):
    assert tries.end(1, 0, None, status=137) == TRY_AGAIN


def test_a_rank_that_ended_well_does_not_speak_for_one_of_which_nothing_is_known(tries):
    assert tries.end(1, 0, status=137, ranks=2) == TRY_AGAIN
    assert tries.outcome == (1, 0)


def test_what_the_launcher_refused_before_a_rank_began_is_not_started_again(tries):
    assert tries.end(1, status=10) == 10
    assert tries.end(2, status=127) == TRY_AGAIN


@pytest.mark.parametrize("code", [20, 21, 23])
def test_what_the_launcher_meant_before_a_rank_began_is_not_a_launchers_failure(tries, code):
    assert tries.end(1, status=code) == TRY_AGAIN
    assert tries.outcome == (code, 0)


def test_b15_a_launcher_that_left_before_a_rank_began_was_preempted(tries):
    assert [tries.end(attempt, status=23) for attempt in range(1, 7)] == [TRY_AGAIN] * 6


def test_a_node_that_was_killed_does_not_hide_one_that_was_refused(tries, capsys):
    tries.say(10, seconds=60)
    assert tries.end(1, status=137) == 10
    assert "cause 10 [exit code 10]" in capsys.readouterr().err


def test_what_was_said_of_an_earlier_try_is_not_said_of_this_one(tries):
    tries.say(10, seconds=-60)
    assert tries.end(2, status=137) == TRY_AGAIN


def test_ranks_know_better_than_the_first_node(tries):
    tries.say(10, seconds=60)
    assert tries.end(1, 21, None) == TRY_AGAIN


@pytest.mark.parametrize("status", [143, 1])  # of a signal; of a launcher that was ended
def test_a_job_that_was_asked_to_leave_before_a_rank_began_is_preempted(tries, status):
    assert tries.end(1, status=status, asked=True) == TRY_AGAIN
    assert tries.outcome == (23, 0)


def test_a_job_that_its_user_stopped_is_not_started_again(tries, capsys):
    tries.folder.stop.touch()
    assert tries.end(1, 23, 23) == 23
    assert "asked to stop: not started again" in capsys.readouterr().err


def test_a_job_that_slurm_ends_or_starts_again_is_left_to_it(tries, monkeypatch, capsys):
    monkeypatch.setattr(slurm_after, "may_requeue", lambda _: False)
    assert tries.end(1, 21, None) == 21
    assert "SLURM itself" in capsys.readouterr().err


def test_b15_three_restarts_in_a_row_without_a_newer_checkpoint_are_the_last(tries, capsys):
    assert [tries.end(attempt, 1, None) for attempt in (1, 2, 3)] == [TRY_AGAIN] * 3
    assert tries.end(4, 1, None) == 24
    assert tries.outcome == (24, 3)
    said = capsys.readouterr().err
    assert "starts again, anew (restart 1)" in said
    assert "3 restarts in a row left no newer checkpoint; the last: rank 0" in said


def test_b15_a_newer_checkpoint_begins_the_count_anew(tries, capsys):
    tries.save(10)
    assert [tries.end(attempt, 1, None) for attempt in (1, 2, 3)] == [TRY_AGAIN] * 3
    tries.save(20)
    assert [tries.end(attempt, 1, None) for attempt in (4, 5, 6)] == [TRY_AGAIN] * 3
    assert "starts again, from step 20 (restart 6)" in capsys.readouterr().err
    assert tries.end(7, 1, None) == 24


def test_b15_preemption_is_nobodys_fault(tries):
    codes = [(1, None), (23, 23), (1, None), (23, 23), (23, 23), (1, None)]
    results = [tries.end(number, *each) for number, each in enumerate(codes, start=1)]
    assert results == [TRY_AGAIN] * 6
    assert tries.end(7, 1, None) == 24


def test_b15_preemption_is_not_the_last_whatever_came_before(tries):
    assert tries.end(1, 1, None) == TRY_AGAIN
    assert tries.end(5, 23, 23) == TRY_AGAIN


def test_b15_restarts_by_slurm_itself_count():
    """After a lost node nobody is asked: the third try's end says so of the second."""
    assert Progress().after(1, -1, preempted=False).fruitless == 0
    assert Progress(1, 5, 0).after(3, 5, preempted=False).fruitless == 2
    assert Progress(1, 5, 0).after(3, 5, preempted=True).fruitless == 1
    assert Progress(1, 5, 2).after(3, 6, preempted=False) == Progress(3, 6, 0)
    assert Progress().after(4, -1, preempted=False).fruitless == 3


def test_b15_preemption_without_end_and_without_a_checkpoint_is_the_last(tries, capsys):
    """As where the time limit is as long as --grace: SIGTERM comes at once."""
    codes = [tries.end(attempt, 23, 23) for attempt in range(1, MAX_PREEMPTED)]
    assert codes == [TRY_AGAIN] * (MAX_PREEMPTED - 1)
    assert tries.end(MAX_PREEMPTED, 23, 23) == 24
    said = capsys.readouterr().err
    assert f"asked to leave {MAX_PREEMPTED} times without a newer checkpoint" in said
    assert "longer than --grace" in said


def test_b15_a_newer_checkpoint_lets_preemptions_go_on(tries):
    for attempt in range(1, 2 * MAX_PREEMPTED):
        if attempt == MAX_PREEMPTED:
            tries.save(10)
        assert tries.end(attempt, 23, 23) == TRY_AGAIN


def test_where_slurm_cannot_be_asked_the_end_is_noted_all_the_same(tries, monkeypatch, capsys):
    def silent(_job_id: str) -> bool:
        raise ConfigError("squeue: no answer")

    monkeypatch.setattr(slurm_after, "may_requeue", silent)
    assert tries.end(1, 21, None) == 21
    assert tries.outcome == (21, 0)
    assert "not started again: squeue: no answer" in capsys.readouterr().err


def test_notes_that_a_full_disk_cut_off_count_as_none(tries):
    (tries.folder.path / "progress.json").write_text('{"att')
    assert tries.end(2, 1, None) == TRY_AGAIN
