"""Why a launch ended, in one line, and the exit code that says what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradacc_dist.exits import Exit
from launcher.decisions import FINAL as FINAL

PEER_LOST, PREEMPTED, NO_PROGRESS = 21, 23, 24


@dataclass(frozen=True)
class Verdict:
    """`exit_code` as a rank would have left with; `cause` is empty where all went well."""

    exit_code: int
    cause: str = ""


def verdict(status: int, exits: Sequence[Exit], asked_to_leave: bool) -> Verdict:
    """Of a node's launcher of ranks that ended with `status` (negative: a signal's number).

    A launcher of ranks ends the other ranks after the first that fails, so what ended first is the
    cause; but a rank that was killed leaves no note of it, and the first note is its peers'.
    """
    if status == 0:
        return Verdict(0)
    last = _last_of_each_rank(exits)
    failed = sorted(
        (each for each in last if each.exit_code), key=lambda each: (each.ended or 0, each.is_echo)
    )
    killed = [each for each in last if each.ended is None]
    if killed and not asked_to_leave:
        # Ranks that the launcher then told to leave say that they were told to.
        failed = [each for each in failed if each.exit_code != PREEMPTED]
    if failed and failed[0].is_ours:
        first = _spokesman(failed)
        assert first.exit_code is not None, "only ranks that ended with a code are here"
        return Verdict(first.exit_code, f"{_who(first)}: {first.error}: {_first_line(first)}")
    if asked_to_leave and not failed:
        return Verdict(PREEMPTED, "asked to leave before there was anything to save")
    if killed:
        names = ", ".join(_who(each) for each in killed)
        return Verdict(
            PEER_LOST,
            f"{names} ended without a word: killed (SIGKILL, out of memory?), or its host is lost",
        )
    if failed:
        return Verdict(1, f"{_who(failed[0])}: {failed[0].error}: {_first_line(failed[0])}")
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return Verdict(1, f"the launcher of ranks ended with {how} before any rank began; see above")


def _last_of_each_rank(exits: Sequence[Exit]) -> list[Exit]:
    """Without the earlier tries of ranks that were started again, be it fewer than before."""
    last = {each.rank: each for each in sorted(exits, key=lambda each: each.began)}
    newest = max(last.values(), key=lambda each: each.began, default=None)
    return [each for each in last.values() if newest and each.rank < newest.ranks]


def _spokesman(failed: Sequence[Exit]) -> Exit:
    """The first, but of a verdict that all share the rank whose note says what it is."""
    first = failed[0]
    same = [each for each in failed if each.exit_code == first.exit_code and not each.is_echo]
    return same[0] if first.is_echo and same else first


def _who(each: Exit) -> str:
    return f"rank {each.rank} (host {each.host}, process {each.pid})"


def _first_line(each: Exit) -> str:
    lines = each.message.strip().splitlines()
    return lines[0] if lines else "no message"
