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

from gradacc_dist.exits import read_exits
from launcher.launches import began
from launcher.plan import Command
from launcher.verdict import Verdict, verdict


def supervised(command: Command, exits: Path) -> Verdict:
    """Run `command` to its end, whoever asks it to leave meanwhile."""
    began_at = time.time()
    with _Forwarding(exits) as forwarding:
        child = subprocess.Popen(command.argv, env={**os.environ, **command.environ})
        forwarding.to(child)
        status = child.wait()
    noted = read_exits(exits)
    here = socket.gethostname()
    is_new = any(each.host == here and each.began >= began_at for each in noted)
    return verdict(status, noted if is_new else [], forwarding.was_asked_to_leave)


class _Forwarding:
    """Passes SIGTERM and SIGUSR1 on to the ranks, which agree among themselves on what to do.

    To the ranks and not to their launcher, which would end them after its own time. Before a rank
    has begun there is only the launcher to tell. Ctrl-C reaches all by the terminal; this process
    waits for them.
    """

    def __init__(self, exits: Path) -> None:
        self._exits = exits
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
        if not ranks and self._child is not None and leaves:
            ranks = [self._child.pid]
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
