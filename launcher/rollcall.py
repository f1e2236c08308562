"""The roll call: nodes meet, and compare themselves, before ranks start on any of them.

On the port that the ranks will meet at, node 0 hears what each node says of itself, tells all who
is missing meanwhile, and in the end what was found. All go on, or all leave, for the same reason.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from gradacc_dist.errors import PreemptedError
from gradacc_dist.exits import LAUNCH_ID
from launcher.findings import Reports
from launcher.launches import ATTEMPT
from launcher.place import Place
from launcher.report import Report
from launcher.rollguest import attend
from launcher.rollhost import hold
from launcher.rollmessages import Hello, Meeting, Say


def roll_call(
    place: Place, num_nodes: int, launch: str | None, report: Report, seconds: float, say: Say
) -> Meeting:
    """Meet the other nodes. `report`: of this one; `say` takes lines for people.

    Raises PeerLostError where a node has not come within `seconds`, and ConfigError where nodes
    contradict each other in who they are. What is wrong with nodes that came is in the findings.
    """
    assert place.rank is not None, "elastic nodes meet by torchrun"
    hello = Hello(launch, place.rank, num_nodes, os.getpid(), report)
    if place.is_first:
        return hold(place, hello, seconds, say)
    found = attend(place, hello, seconds, say)
    name = place.describe(place.rank)
    return Meeting(found, Reports({place.rank: report}, {place.rank: name}, {place.rank: 0.0}))


def name_of_launch(environ: Mapping[str, str]) -> str | None:
    """What the nodes of one try of one launch have in common, where somebody named it."""
    launch, attempt = environ.get(LAUNCH_ID), environ.get(ATTEMPT)
    return f"{launch}, try {attempt}" if launch and attempt else launch or None


@contextmanager
def may_be_asked_to_leave() -> Iterator[None]:
    """While there are no ranks: SIGTERM raises PreemptedError, SIGUSR1 finds nothing to save."""

    def leave(_number: int, _frame: FrameType | None) -> NoReturn:
        raise PreemptedError("asked to leave before all nodes were here; nothing was to be saved")

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, leave),
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
