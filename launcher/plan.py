"""From what is asked, and the machine, to one command: a pure function.

The launchers of ranks are accelerate's and, where nodes may come and go, torchrun's. What they are
given here they could be given by hand: `--dry-run` prints it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gradacc_dist.errors import ConfigError
from gradacc_dist.exits import EXITS, LAUNCH_ID
from launcher.machine import Machine
from launcher.place import Place
from launcher.request import SHIPPED, Request

# torchrun would kill ranks 30 s after SIGTERM; how long a save may take is the scheduler's to say.
SHUTDOWN_SECONDS = 3600

# A lost node is noticed after interval x attempts, a new one let in after the last call; torch's
# own figures are 15 s and more. read_timeout is a node's patience with the store of the first.
ELASTIC_CONF = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3,read_timeout=10"
MONITOR_SECONDS = "0.5"
MAX_RESTARTS = "100"


@dataclass(frozen=True)
class Command:
    """What starts the ranks of one node. `environ`: what is set beyond what there is.

    `restarts`: it starts ranks that end by an error once more, whatever the error.
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    restarts: bool = False

    def __str__(self) -> str:
        """As a shell takes it."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environ.items()]
        return " \\\n    ".join([*settings, shlex.join(self.argv)])


@dataclass(frozen=True)
class Layout:
    """How many ranks a node starts, and on what. `reason`: why so many."""

    ranks: int
    device: str
    reason: str

    def total(self, num_nodes: int) -> int:
        """Ranks of so many nodes."""
        return self.ranks * num_nodes


def layout_of(request: Request, machine: Machine) -> Layout:
    """The ranks of this node. Raises ConfigError where there are fewer GPUs than asked for."""
    on_cpu = request.cpu or not machine.num_gpus
    device = "cpu" if on_cpu else "gpu"
    if request.ranks is None and on_cpu:
        why = "--cpu" if request.cpu else f"{machine.host} has no GPU"
        return Layout(1, device, f"{why}; --ranks N for more")
    if request.ranks is None:
        return Layout(machine.num_gpus, device, f"one for each GPU of {machine.host}")
    if not on_cpu and request.ranks > machine.num_gpus:
        raise ConfigError(
            f"--ranks: {request.ranks} ranks on each node, but {machine.host} shows "
            f"{machine.num_gpus} GPU(s); ask for fewer, or for CPU ranks with --cpu"
        )
    return Layout(request.ranks, device, "--ranks asks for it")


def plan(request: Request, machine: Machine, place: Place, launch_id: str, exits: Path) -> Command:
    """The command of this node. `exits`: folder where its ranks note how they ended.

    Raises ConfigError where the machine cannot do what is asked.
    """
    layout, num_nodes = layout_of(request, machine), request.nodes.maximum
    environ = {LAUNCH_ID: launch_id, EXITS: str(exits)}
    environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SHUTDOWN_SECONDS)
    if layout.device == "cpu":
        # torchrun would give each rank one thread.
        threads = machine.threads or str(max(1, machine.num_cores // layout.ranks))
        environ["OMP_NUM_THREADS"] = threads
    if layout.device == "cpu" and (request.nodes.is_elastic or layout.total(num_nodes) == 1):
        environ["CUDA_VISIBLE_DEVICES"] = "-1"  # accelerate's configurations say it for theirs
    if request.nodes.is_elastic:
        # Without it a node that joins cannot reach the store, and ends the run of the others.
        environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        argv = (*_torchrun(request, layout, place, launch_id), *request.program)
        return Command(argv, environ, restarts=True)
    if layout.total(num_nodes) == 1:
        # A launcher of one rank could only come between it and a signal.
        return Command((sys.executable, "-m", *request.program), environ)
    return Command((*_accelerate(request, layout, place), *request.program), environ)


def _accelerate(request: Request, layout: Layout, place: Place) -> tuple[str, ...]:
    num_nodes = request.nodes.maximum
    launch = (*_module("accelerate.commands.launch"), "--config_file")
    ranks = ("--num_processes", str(layout.total(num_nodes)))
    if num_nodes == 1:
        return (*launch, _shipped(f"{layout.device}_ddp"), *ranks, "-m")
    meeting = {
        "--num_machines": str(num_nodes),
        "--machine_rank": str(place.rank),
        "--main_process_ip": place.host,
        "--main_process_port": str(place.port),
    }
    words = [word for pair in meeting.items() for word in pair]
    return (*launch, _shipped(f"multinode_{layout.device}_ddp"), *words, *ranks, "-m")


def _torchrun(request: Request, layout: Layout, place: Place, launch_id: str) -> tuple[str, ...]:
    settings = {
        "--nnodes": str(request.nodes),
        "--nproc-per-node": str(layout.ranks),
        "--rdzv-backend": "c10d",
        "--rdzv-endpoint": f"{place.host}:{place.port}",
        "--rdzv-id": launch_id,
        "--rdzv-conf": f"{ELASTIC_CONF},join_timeout={request.join_seconds}",
        "--monitor-interval": MONITOR_SECONDS,
        "--max-restarts": MAX_RESTARTS,
    }
    words = [word for pair in settings.items() for word in pair]
    return (*_module("torch.distributed.run"), *words, "-m")


def _shipped(name: str) -> str:
    return str(SHIPPED / "accelerate" / f"{name}.yaml")


def _module(name: str) -> tuple[str, str, str]:
    """Of the environment this runs in, activated or not, wherever its programs are."""
    return (sys.executable, "-m", name)
