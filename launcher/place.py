"""Where a node is among the nodes of a run, as the scheduler says it in the environment.

NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, or what Kubeflow's trainer calls them (PET_...).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradacc_dist.errors import ConfigError
from launcher.request import Nodes

DEFAULT_PORT = 29500
NAMES = "GRADACC_NODES"
"""Variable: the names of all nodes in their order, if the scheduler knows them, by commas."""


@dataclass(frozen=True)
class Place:
    """Node `rank` of a run whose first node is reached at `host`:`port`.

    `names`: of all nodes, or (); elastic nodes have no number (`rank` None).
    """

    rank: int | None
    host: str
    port: int
    names: tuple[str, ...] = ()

    @property
    def is_first(self) -> bool:
        """Whether this node speaks for the run."""
        return self.rank == 0

    def describe(self, rank: int) -> str:
        """A node as people find it."""
        return self.names[rank] if rank < len(self.names) else f"node {rank}"


def said(environ: Mapping[str, str], name: str) -> str | None:
    """The variable `name`, or Kubeflow's of the same meaning; empty is unset."""
    return environ.get(name) or environ.get(f"PET_{name}") or None


def nodes_of(environ: Mapping[str, str]) -> Nodes:
    """How many nodes the environment speaks of: one where it does not. Raises ConfigError."""
    text = said(environ, "NNODES")
    return Nodes() if text is None else Nodes.parse(text)


def ranks_of(environ: Mapping[str, str]) -> int | None:
    """Ranks on each node, where the environment says a number."""
    text = said(environ, "NPROC_PER_NODE") or ""
    return int(text) if text.isdecimal() and int(text) else None


def place_of(environ: Mapping[str, str], nodes: Nodes) -> Place:
    """This node's place. Raises ConfigError that names all that is missing or no number."""
    if nodes == Nodes():
        return Place(0, "localhost", 0)
    mistakes = []
    rank, host = said(environ, "NODE_RANK"), said(environ, "MASTER_ADDR")
    port = said(environ, "MASTER_PORT") or str(DEFAULT_PORT)
    if host is None:
        mistakes.append("MASTER_ADDR is not set: the name by which all nodes reach the first")
    if not nodes.is_elastic and (rank is None or not rank.isdecimal()):
        mistakes.append(f"NODE_RANK is {rank or 'not set'}: the number of this node, from 0")
    elif not nodes.is_elastic and int(rank or 0) >= nodes.maximum:
        mistakes.append(
            f"NODE_RANK is {rank}, but there are {nodes} nodes: 0 to {nodes.maximum - 1}"
        )
    if not port.isdecimal() or not 0 < int(port) < 65536:
        mistakes.append(f"MASTER_PORT is {port}: a port of the first node, 1 to 65535")
    if mistakes:
        lines = "\n  ".join(mistakes)
        raise ConfigError(
            f"{nodes} nodes find each other by the environment of each:\n  {lines}\n"
            "  (`gradacc submit --slurm` and `gradacc manifest --kubernetes` set all of it)"
        )
    assert host is not None
    names = tuple(filter(None, environ.get(NAMES, "").split(",")))
    return Place(int(rank) if rank and rank.isdecimal() else None, host, int(port), names)


def places_of(environ: Mapping[str, str], nodes: Nodes) -> list[Place]:
    """This node's place, or those of all nodes where there is no word of a number.

    Raises ConfigError.
    """
    if nodes.is_elastic or said(environ, "NODE_RANK") is not None:
        return [place_of(environ, nodes)]
    numbers = map(str, range(nodes.maximum))
    return [place_of({**environ, "NODE_RANK": number}, nodes) for number in numbers]
