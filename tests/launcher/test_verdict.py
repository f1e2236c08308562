"""Why a launch ended, and with which code, by what its ranks noted (C8)."""

import pytest

from gradacc_dist.exits import Exit
from launcher.verdict import Verdict
from launcher.verdict import verdict as verdict_of


def rank(number: int, code: int | None, at: float | None = 10.0, **more) -> Exit:
    """A rank's note; without a code it was killed."""
    ended = None if code is None else at
    pid, began = 100 + number, more.pop("began", 1.0)
    who = {"rank": number, "ranks": more.pop("ranks", 4), "host": more.pop("host", "n1")}
    return Exit(**who, pid=pid, began=began, ended=ended, exit_code=code, **more)


def verdict(status: int, exits: list[Exit], asked_to_leave: bool) -> Verdict:
    """As the launcher of n1 sees it."""
    return verdict_of(status, exits, asked_to_leave, here="n1")


def ours(number: int, code: int, message: str, **more) -> Exit:
    return rank(number, code, error="SomeError", message=message, is_ours=True, **more)


def theirs(number: int, message: str, **more) -> Exit:
    """A library's error: of no code of ours."""
    return rank(number, 1, error="RuntimeError", message=message, **more)


def told_to_leave(number: int, **more) -> Exit:
    return ours(number, 23, "SIGTERM before the first step", **more)


def test_all_went_well():
    assert verdict(0, [rank(0, 0), rank(1, 0)], asked_to_leave=False) == Verdict(0)


def test_the_launchers_status_wins_over_an_old_try():
    """torchrun started the ranks again, and then all went well."""
    assert verdict(0, [theirs(0, "boom")], asked_to_leave=False) == Verdict(0)


@pytest.mark.parametrize("code", [10, 11, 12, 20, 21, 22, 23, 24, 25])
def test_the_code_is_that_of_the_rank_and_not_the_launchers(code):
    said = verdict(1, [ours(0, code, "line one\nline two"), rank(1, 0)], asked_to_leave=False)
    assert said.exit_code == code
    assert said.cause == "rank 0 (host n1, process 100): SomeError: line one"


def test_what_failed_first_is_the_cause():
    exits = [
        ours(0, 22, "later", at=12.0),
        ours(1, 11, "first", at=11.0),
        told_to_leave(2, at=13.0),
    ]
    said = verdict(1, exits, asked_to_leave=False)
    assert said.exit_code == 11
    assert "rank 1" in said.cause


def test_of_a_verdict_that_all_share_the_one_that_says_it_is_quoted():
    exits = [
        ours(1, 22, "", at=10.0, is_echo=True),
        ours(0, 22, "loss is nan at step 3", at=10.1),
    ]
    said = verdict(1, exits, asked_to_leave=False)
    assert said == Verdict(22, "rank 0 (host n1, process 100): SomeError: loss is nan at step 3")


def test_b16_a_rank_that_was_killed_is_named_and_its_peers_are_not_to_blame():
    exits = [rank(0, None), theirs(1, "connection closed by peer"), told_to_leave(2)]
    said = verdict(1, exits, asked_to_leave=False)
    assert said.exit_code == 21
    assert "rank 0 (host n1, process 100) ended without a word" in said.cause
    assert "killed (out of memory?)" in said.cause


def test_a_rank_elsewhere_that_has_not_ended_may_be_waiting_still():
    """For one that failed here with an error of a library, which comes first."""
    exits = [theirs(0, "CUDA out of memory"), rank(1, None, host="n2")]
    said = verdict(1, exits, asked_to_leave=False)
    assert said.exit_code == 21
    assert said.cause.startswith("rank 0 (host n1, process 100): RuntimeError: CUDA out of memory;")
    assert "rank 1 (host n2, process 101) ended without a word" in said.cause
    assert "waiting still" in said.cause


def test_ranks_killed_after_they_were_asked_to_leave_are_named():
    said = verdict(1, [rank(0, None), rank(1, None)], asked_to_leave=True)
    assert said.exit_code == 23
    assert "left without a checkpoint; rank 0 (host n1, process 100), rank 1" in said.cause


def test_ranks_that_were_told_to_leave_because_of_it_are_not_the_cause():
    said = verdict(1, [rank(0, None), told_to_leave(1)], asked_to_leave=False)
    assert said.exit_code == 21
    assert "rank 0" in said.cause


def test_an_error_of_ours_beside_a_killed_rank_is_the_cause():
    said = verdict(1, [rank(0, None), ours(1, 25, "disk full")], asked_to_leave=False)
    assert said.exit_code == 25


def test_b14_ranks_that_were_asked_to_leave_say_so():
    exits = [told_to_leave(0), ours(1, 23, "", is_echo=True)]
    assert verdict(1, exits, asked_to_leave=True).exit_code == 23


@pytest.mark.parametrize("status", [1, -15, 143])
def test_b14_asked_before_a_rank_began(status):
    said = verdict(status, [], asked_to_leave=True)
    assert said.exit_code == 23
    assert said.cause == "asked to leave, and left without a checkpoint"


def test_a_library_error_is_one_with_its_first_line():
    said = verdict(1, [theirs(3, "CUDA error\nsome hint")], asked_to_leave=False)
    assert said == Verdict(1, "rank 3 (host n1, process 103): RuntimeError: CUDA error")


@pytest.mark.parametrize(("status", "how"), [(2, "exit status 2"), (-9, "signal 9")])
def test_a_launcher_that_started_nothing(status, how):
    said = verdict(status, [], asked_to_leave=False)
    assert said.exit_code == 1
    assert f"ended with {how} before any rank began" in said.cause


def test_of_a_rank_that_was_started_again_the_last_try_counts():
    exits = [rank(0, None, began=1.0), ours(0, 11, "bad row", began=5.0, at=6.0)]
    for order in (exits, exits[::-1]):
        assert verdict(1, order, asked_to_leave=False).exit_code == 11


def test_a_rank_that_began_again_elsewhere_is_the_one_that_counts():
    """Elastic nodes: the host that had rank 0 is lost, and another has it now."""
    exits = [rank(0, None, host="n1"), rank(0, 0, host="n2", began=5.0), theirs(1, "boom")]
    assert verdict(1, exits, asked_to_leave=False).cause.startswith("rank 1 (host n1")


def test_ranks_of_a_larger_layout_before_do_not_count():
    exits = [rank(1, None, ranks=2), ours(0, 22, "loss is nan", ranks=1, began=5.0)]
    assert verdict(1, exits, asked_to_leave=False).exit_code == 22
    assert verdict(1, [exits[0], theirs(0, "boom", ranks=1, began=5.0)], False).exit_code == 1
