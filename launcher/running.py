"""Start the ranks of this node, pass signals on to them, and say how it ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from gradacc_dist.config.present import table
from gradacc_dist.config.resolved import Resolved
from gradacc_dist.errors import ConfigError, GradaccError
from gradacc_dist.exits import LAUNCH_ID
from launcher.checked import prepared
from launcher.launches import ATTEMPT, KIND, Kind, Launch, LaunchFolder, Outcome, new_id
from launcher.machine import Machine
from launcher.place import Place, place_of, places_of
from launcher.plan import Layout, plan
from launcher.ranks import supervised
from launcher.report import is_own, own_addresses, report
from launcher.request import Nodes, Request
from launcher.rollcall import may_be_asked_to_leave, name_of_launch, roll_call
from launcher.rollmessages import Meeting
from launcher.watching import require_alone


def run(request: Request, environ: Mapping[str, str]) -> int:
    """Start the ranks of this node and wait for them. Returns the exit code.

    Raises ConfigError, with every mistake, before a rank starts.
    """
    here = prepared(request, environ)
    if not environ.get(LAUNCH_ID):
        require_alone(here.output)
    machine, layout = here.machine, here.layout
    place = place_of(environ, request.nodes)
    launch_id = environ.get(LAUNCH_ID) or _new_id(request)
    folder = LaunchFolder.of(here.output, launch_id)
    exits = folder.exits / environ.get(ATTEMPT, "1")
    command = plan(request, machine, place, launch_id, exits)
    _announce(request, machine, place, layout)
    speaks = place.is_first or (place.rank is None and _leads_here(place.host))
    by = environ.get(KIND) or "foreground"
    if speaks and by in ("foreground", "kubernetes"):
        # Each start anew: it is another process, or another pod.
        kind: Kind = "kubernetes" if by == "kubernetes" else "foreground"
        folder.write_launch(Launch.of_process(os.getpid(), launch_id, kind, request.train_words))
    try:
        if request.nodes.maximum > 1 and not request.nodes.is_elastic:
            _meet_to_train(request, place, layout, here.resolved, environ)
        result = supervised(command, exits)
    except GradaccError as error:
        if speaks:
            folder.write_outcome(Outcome(error.exit_code, str(error), time.time()))
        raise
    if result.cause:
        say(f"{result.cause} [exit code {result.exit_code}]")
    if speaks:
        folder.write_outcome(Outcome(result.exit_code, result.cause, time.time()))
    return result.exit_code


def show(request: Request, environ: Mapping[str, str]) -> int:
    """Print the command of this node; of every node, where nothing says which this one is.

    Raises ConfigError, with every mistake.
    """
    here = prepared(request, environ)
    machine, places = here.machine, places_of(environ, request.nodes)
    launch_id = environ.get(LAUNCH_ID) or _new_id(request)
    folder = LaunchFolder.of(here.output, launch_id)
    for place in places:
        if len(places) > 1:
            print(
                f"# on {place.describe(place.rank or 0)}, with {machine.num_gpus} GPU(s) as here:"
            )
        print(plan(request, machine, place, launch_id, folder.exits / environ.get(ATTEMPT, "1")))
    return 0


def meet(
    request: Request,
    place: Place,
    layout: Layout,
    resolved: Resolved,
    environ: Mapping[str, str],
) -> Meeting:
    """The roll call of all nodes. Raises as `roll_call` does."""
    mine, launch = report(resolved, layout, environ), name_of_launch(environ)
    with may_be_asked_to_leave():
        return roll_call(place, request.nodes.minimum, launch, mine, request.join_seconds, say)


def _meet_to_train(
    request: Request, place: Place, layout: Layout, resolved: Resolved, environ: Mapping[str, str]
) -> None:
    """The roll call, which ends here where the nodes cannot train together."""
    meeting = meet(request, place, layout, resolved, environ)
    if place.is_first:
        meeting.tell_warnings(say)
    meeting.refuse_errors()


def _new_id(request: Request) -> str:
    if request.nodes.is_elastic:
        raise ConfigError(
            f"--nodes {request.nodes}: nodes that come and go know each other by {LAUNCH_ID}; set "
            "it to any name, the same on every node and another for each launch"
        )
    return new_id()


def check(request: Request, environ: Mapping[str, str]) -> int:
    """Print every setting of the run with its source. Raises ConfigError with every mistake."""
    print(table(prepared(request, environ).resolved))
    return 0


def say(text: str) -> None:
    """Where a launcher says things."""
    print(f"gradacc: {text}", file=sys.stderr, flush=True)


def _leads_here(host: str) -> bool:
    """Whether this is the host that elastic nodes meet at, the one that speaks for them."""
    return any(map(is_own, own_addresses(host)))


def _announce(request: Request, machine: Machine, place: Place, layout: Layout) -> None:
    number = "one" if place.rank is None else str(place.rank)
    is_alone = request.nodes == Nodes()
    where = machine.host if is_alone else f"{machine.host}, node {number} of {request.nodes}"
    say(f"{where}: {layout.ranks} {layout.device.upper()} rank(s) ({layout.reason})")
    if request.nodes.is_elastic:
        say(
            f"begins once {request.nodes.minimum} node(s) have met at {place.host}:{place.port}; "
            f"gives up after {request.join_seconds} s"
        )
