"""Start the ranks of this node, pass signals on to them, and say how it ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from gradacc_dist.checkpoint.launch import LAUNCH_ID
from gradacc_dist.config.load import load
from gradacc_dist.config.present import table
from gradacc_dist.config.resolved import Resolved
from gradacc_dist.errors import ConfigError
from gradacc_dist.exits import read_exits
from launcher.launches import Kind, Launch, LaunchFolder, Outcome, began, new_id
from launcher.machine import Machine, this_machine
from launcher.place import Place, place_of, places_of
from launcher.plan import Command, Layout, layout_of, plan
from launcher.request import Nodes, Request
from launcher.verdict import Verdict, verdict

ATTEMPT = "GRADACC_ATTEMPT"
"""Variable: which try of the launch this is, where a scheduler counts them; equal on all nodes."""

KIND = "GRADACC_LAUNCHED_BY"
"""Variable: `local`, `slurm` or `kubernetes`. The first two note the launch themselves."""


def run(request: Request, environ: Mapping[str, str]) -> int:
    """Start the ranks of this node and wait for them. Returns the exit code.

    Raises ConfigError, with every mistake, before a rank starts.
    """
    machine, place = this_machine(environ), place_of(environ, request.nodes)
    layout = layout_of(request, machine)
    resolved = checked(request, layout, environ)
    launch_id = environ.get(LAUNCH_ID) or _new_id(request)
    folder = LaunchFolder.of(_output(resolved), launch_id)
    exits = folder.exits / environ.get(ATTEMPT, "1")
    command = plan(request, machine, place, launch_id, exits)
    _announce(request, machine, place, layout)
    by = environ.get(KIND)
    speaks = place.rank in (0, None)
    if speaks and by == "kubernetes":
        _note(folder, launch_id, "kubernetes", request)  # each try anew: it has another pod
    elif speaks and not by and folder.read_launch() is None:
        _note(folder, launch_id, "foreground", request)
    result = _supervised(command, exits)
    if result.cause:
        _say(f"{result.cause} [exit code {result.exit_code}]")
    if speaks:
        folder.write_outcome(Outcome(result.exit_code, result.cause, time.time()))
    return result.exit_code


def show(request: Request, environ: Mapping[str, str]) -> int:
    """Print the command of this node; of every node, where nothing says which this one is.

    Raises ConfigError, with every mistake.
    """
    machine, places = this_machine(environ), places_of(environ, request.nodes)
    resolved = checked(request, layout_of(request, machine), environ)
    launch_id = environ.get(LAUNCH_ID) or _new_id(request)
    folder = LaunchFolder.of(_output(resolved), launch_id)
    for place in places:
        if len(places) > 1:
            print(
                f"# on {place.describe(place.rank or 0)}, with {machine.num_gpus} GPU(s) as here:"
            )
        print(plan(request, machine, place, launch_id, folder.exits / environ.get(ATTEMPT, "1")))
    return 0


def output_of(request: Request, environ: Mapping[str, str]) -> Path:
    """The output folder of the run. Raises ConfigError with every mistake of its configuration."""
    layout = layout_of(request, this_machine(environ))
    return _output(checked(request, layout, environ))


def _output(resolved: Resolved) -> Path:
    return resolved.config.run.folder.absolute()


def checked(request: Request, layout: Layout, environ: Mapping[str, str]) -> Resolved:
    """The run's configuration, as its ranks will find it. Raises ConfigError."""
    ranks = layout.total(request.nodes.minimum)
    seen = {**environ, "WORLD_SIZE": str(ranks)}
    return load(request.config, request.run_flags, seen)


def _new_id(request: Request) -> str:
    if request.nodes.is_elastic:
        raise ConfigError(
            f"--nodes {request.nodes}: nodes that come and go know each other by {LAUNCH_ID}; set "
            "it to any name, the same on every node and another for each launch"
        )
    return new_id()


def check(request: Request, environ: Mapping[str, str]) -> int:
    """Print every setting of the run with its source. Raises ConfigError with every mistake."""
    layout = layout_of(request, this_machine(environ))
    print(table(checked(request, layout, environ)))
    return 0


def _say(text: str) -> None:
    print(f"gradacc: {text}", file=sys.stderr, flush=True)


def _announce(request: Request, machine: Machine, place: Place, layout: Layout) -> None:
    number = "one" if place.rank is None else str(place.rank)
    is_alone = request.nodes == Nodes()
    where = machine.host if is_alone else f"{machine.host}, node {number} of {request.nodes}"
    _say(f"{where}: {layout.ranks} {layout.device.upper()} rank(s) ({layout.reason})")


def _note(folder: LaunchFolder, launch_id: str, kind: Kind, request: Request) -> None:
    words = ("train", *request.command_line())
    folder.write_launch(
        Launch(
            id=launch_id,
            kind=kind,
            host=socket.gethostname(),
            started=time.time(),
            command=words,
            pid=os.getpid(),
            pid_began=began(os.getpid()),
        )
    )


def _supervised(command: Command, exits: Path) -> Verdict:
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
