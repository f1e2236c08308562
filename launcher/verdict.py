"""Why a launch ended, in one line, and the exit code that says what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradacc_dist.exits import Exit

PEER_LOST, PREEMPTED, NO_PROGRESS = 21, 23, 24


@dataclass(frozen=True)
class Verdict:
    """`exit_code` as a rank would have left with; `cause` is empty where all went well."""

    exit_code: int
    cause: str = ""


def verdict(
    status: int, exits: Sequence[Exit], asked_to_leave: bool, here: str | None = None
) -> Verdict:
    """Of a node's launcher of ranks that ended with `status` (negative: a signal's number).

    A launcher of ranks ends the other ranks after the first that fails, so what ended first is the
    cause. But a rank that was killed leaves no note of it, and the first note is its peers'. That
    is certain of ranks on `here`, whose launcher has ended; others may be waiting still.
    """
    if status == 0:
        return Verdict(0)
    last = _last_of_each_rank(exits)
    killed = [each for each in last if each.ended is None and each.host == here]
    elsewhere = [each for each in last if each.ended is None and each.host != here]
    failed = sorted(
        (each for each in last if each.exit_code), key=lambda each: (each.ended or 0, each.is_echo)
    )
    if (killed or elsewhere) and not asked_to_leave:
        # Ranks that the launcher then told to leave say that they were told to.
        failed = [each for each in failed if each.exit_code != PREEMPTED]
    if failed and failed[0].is_ours:
        first = _spokesman(failed)
        assert first.exit_code is not None, "only ranks that ended with a code are here"
        return Verdict(first.exit_code, _said(first))
    if asked_to_leave and not failed:
        late = f"; {_who(*killed)} ended without a word" if killed else ""
        return Verdict(PREEMPTED, f"asked to leave, and left without a checkpoint{late}")
    if killed:
        return Verdict(PEER_LOST, f"{_who(*killed)} ended without a word: killed (out of memory?)")
    if elsewhere:
        first_words = f"{_said(failed[0])}; " if failed else ""
        lost = "ended without a word: killed, lost with its host, or waiting still"
        return Verdict(PEER_LOST, f"{first_words}{_who(*elsewhere)} {lost}")
    if failed:
        return Verdict(1, _said(failed[0]))
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


def _who(*ranks: Exit) -> str:
    return ", ".join(f"rank {each.rank} (host {each.host}, process {each.pid})" for each in ranks)


def _said(each: Exit) -> str:
    lines = each.message.strip().splitlines()
    return f"{_who(each)}: {each.error}: {lines[0] if lines else 'no message'}"
