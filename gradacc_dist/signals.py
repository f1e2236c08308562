"""SIGTERM and SIGUSR1: a handler takes note, and the loop acts where all ranks agree.

Imports no torch, so that a run can be asked to leave while it is still being loaded.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

from gradacc_dist.errors import PreemptedError


class Asked(IntEnum):
    """What a process was asked for; the greater counts."""

    NOTHING = 0
    SAVE = 1
    """SIGUSR1: save a checkpoint and go on."""
    LEAVE = 2
    """SIGTERM: save a checkpoint and leave."""


class Signals:
    """What this process has been asked for since it started.

    At first SIGTERM raises PreemptedError wherever the program is, once. After `defer` it is noted
    only: ranks that compute together leave together.
    """

    def __init__(self) -> None:
        self._asked = Asked.NOTHING
        self._leaves_at_once = True

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The handler of both signals."""
        asked = Asked.LEAVE if number == signal.SIGTERM else Asked.SAVE
        is_first = asked > self._asked
        self._asked = max(self._asked, asked)
        if asked is Asked.LEAVE and self._leaves_at_once and is_first:
            self._leave()

    def defer(self) -> None:
        """From here on only take note. Raises PreemptedError where SIGTERM came before."""
        if self._asked is Asked.LEAVE:  # and some library caught what the handler raised
            self._leave()
        self._leaves_at_once = False

    def take(self) -> Asked:
        """What to tell the other ranks: SIGUSR1 once, SIGTERM for good."""
        asked = self._asked
        if asked is Asked.SAVE:
            self._asked = Asked.NOTHING
        return asked

    def _leave(self) -> None:
        raise PreemptedError(
            "SIGTERM before the first step: nothing was computed, so nothing is saved; start the "
            "same command again"
        )


@contextmanager
def listening() -> Iterator[Signals]:
    """Take the two signals over, and give them back at the end. On the main thread.

    A process that leaves because it was asked to stays deaf to SIGTERM: launchers repeat it, and
    that would change the exit code.
    """
    signals = Signals()
    before = {
        number: signal.signal(number, signals.handle) for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield signals
    except PreemptedError:
        before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
