"""The ranks of this node, once started: signals are passed on to them, and their ends judged."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from gradacc_dist.exits import Exit, read_exits
from launcher.decisions import FINAL
from launcher.launches import start_ticks
from launcher.plan import SHUTDOWN_SECONDS, Command
from launcher.verdict import Verdict, verdict

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
CLOCK_SECONDS = 30.0
"""What began on another host so long before this start is of an earlier one, for certain."""


def supervised(command: Command, exits: Path) -> Verdict:
    """Run `command` to its end, whoever asks it to leave meanwhile.

    One that starts ranks again is ended where they would only fail again.
    """
    here = socket.gethostname()
    notes = _Notes(exits, here, time.time())
    with _Forwarding(notes, command.restarts) as forwarding:
        child = subprocess.Popen(command.argv, env={**os.environ, **command.environ})
        forwarding.to(child)
        fatal = _fatal_end(child, notes) if command.restarts else None
        status = child.wait()
        _end_orphans(notes)
    noted = [fatal] if fatal else notes.read() if notes.of_this_host() else []
    return verdict(status, noted, forwarding.was_asked_to_leave, here)


@dataclass(frozen=True)
class _Notes:
    """What ranks have noted in the folder `exits` since this start, on `here` and elsewhere."""

    exits: Path
    here: str
    since: float

    def read(self) -> list[Exit]:
        """Of all hosts."""
        return [
            each
            for each in read_exits(self.exits)
            if each.began >= self.since - (0 if each.host == self.here else CLOCK_SECONDS)
        ]

    def of_this_host(self) -> list[Exit]:
        """Of this host."""
        return [each for each in self.read() if each.host == self.here]

    def living(self) -> list[int]:
        """The processes of ranks of this host that have not ended."""
        return [
            each.pid
            for each in self.of_this_host()
            if each.ended is None and start_ticks(each.pid) is not None
        ]


def _fatal_end(child: subprocess.Popen[bytes], notes: _Notes) -> Exit | None:
    """Wait for the end of `child`, or of a rank of it for a reason that stays; then end `child`."""
    while child.poll() is None:
        for each in notes.of_this_host():
            if each.exit_code and each.exit_code in FINAL:
                child.terminate()
                return each
        time.sleep(POLL_SECONDS)
    return None


def _end_orphans(notes: _Notes) -> None:
    """Of a launcher that ended before its ranks. They end by themselves, by the same cause or
    because they were asked to; else they are asked, and then not asked.
    """
    for seconds, number in (
        (PATIENCE_SECONDS, signal.SIGTERM),
        (SHUTDOWN_SECONDS, signal.SIGKILL),
    ):
        until = time.monotonic() + seconds
        while notes.living() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        _signal(notes.living(), number)


def _signal(processes: list[int], number: int) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class _Forwarding:
    """Passes SIGTERM and SIGUSR1 on to the ranks, which agree among themselves on what to do.

    To the ranks and not to their launcher, which would end them after its own time; but to one that
    would start them again. Before a rank has begun there is only the launcher to tell. Ctrl-C
    reaches all by the terminal; this process waits for them.
    """

    def __init__(self, notes: _Notes, restarts: bool) -> None:
        self._notes, self._restarts = notes, restarts
        self._child: subprocess.Popen[bytes] | None = None
        self.was_asked_to_leave = False

    def __enter__(self) -> _Forwarding:
        self._before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._forward),
            signal.SIGUSR1: signal.signal(signal.SIGUSR1, self._forward),
            signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        }
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to(self, child: subprocess.Popen[bytes]) -> None:
        """From here on there is somebody to tell."""
        self._child = child
        if self.was_asked_to_leave:
            child.terminate()

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        leaves = number == signal.SIGTERM
        self.was_asked_to_leave |= leaves
        processes = self._notes.living()
        if leaves and self._child is not None and (self._restarts or not processes):
            processes = [self._child.pid]
        _signal(processes, number)
