"""The ranks of this node, once started: signals are passed on to them, and their ends judged."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from gradacc_dist.exits import Exit, read_exits
from launcher.launches import began
from launcher.plan import Command
from launcher.verdict import FINAL, Verdict, verdict

POLL_SECONDS = 1.0


def supervised(command: Command, exits: Path) -> Verdict:
    """Run `command` to its end, whoever asks it to leave meanwhile.

    One that starts ranks again is ended where they would only fail again.
    """
    began_at = time.time()
    with _Forwarding(exits, command.restarts) as forwarding:
        child = subprocess.Popen(command.argv, env={**os.environ, **command.environ})
        forwarding.to(child)
        fatal = _fatal_end(child, exits, began_at) if command.restarts else None
        status = child.wait()
    noted = [fatal] if fatal else read_exits(exits)
    is_new = any(_began_here(each, began_at) for each in noted)
    return verdict(status, noted if is_new else [], forwarding.was_asked_to_leave)


def _fatal_end(child: subprocess.Popen[bytes], exits: Path, began_at: float) -> Exit | None:
    """Wait for the end of `child`, or of a rank of it for a reason that stays; then end `child`."""
    while child.poll() is None:
        for each in read_exits(exits):
            if each.exit_code and each.exit_code in FINAL and _began_here(each, began_at):
                child.terminate()
                return each
        time.sleep(POLL_SECONDS)
    return None


def _began_here(each: Exit, began_at: float) -> bool:
    """On this host, and not by an earlier start of the launch."""
    return each.host == socket.gethostname() and each.began >= began_at


class _Forwarding:
    """Passes SIGTERM and SIGUSR1 on to the ranks, which agree among themselves on what to do.

    To the ranks and not to their launcher, which would end them after its own time; but to one that
    would start them again. Before a rank has begun there is only the launcher to tell. Ctrl-C
    reaches all by the terminal; this process waits for them.
    """

    def __init__(self, exits: Path, restarts: bool) -> None:
        self._exits, self._restarts = exits, restarts
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
        here = socket.gethostname()
        ranks = [
            each.pid
            for each in read_exits(self._exits)
            if each.host == here and each.ended is None and began(each.pid) is not None
        ]
        if leaves and self._child is not None and (self._restarts or not ranks):
            ranks = [self._child.pid]
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
