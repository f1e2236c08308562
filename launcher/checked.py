"""The configuration of a run as its ranks on this node will find it, before one starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gradacc_dist.config.load import load
from gradacc_dist.config.resolved import Resolved
from launcher.machine import Machine, this_machine
from launcher.plan import Layout, layout_of
from launcher.request import Request


@dataclass(frozen=True)
class Prepared:
    """What this machine makes of a request."""

    machine: Machine
    layout: Layout
    resolved: Resolved

    @property
    def output(self) -> Path:
        """The output folder of the run."""
        return output_of(self.resolved)


def prepared(request: Request, environ: Mapping[str, str]) -> Prepared:
    """`request` on this machine. Raises ConfigError with every mistake of its configuration."""
    machine = this_machine(environ, cpu=request.cpu)
    layout = layout_of(request, machine)
    return Prepared(machine, layout, checked(request, layout, environ))


def checked(request: Request, layout: Layout, environ: Mapping[str, str]) -> Resolved:
    """The run's configuration, as its ranks will find it. Raises ConfigError."""
    ranks = layout.total(request.nodes.minimum)
    seen = {**environ, "WORLD_SIZE": str(ranks)}
    return load(request.config, request.run_flags, seen)


def output_of(resolved: Resolved) -> Path:
    """The output folder of the run, wherever one looks from."""
    return resolved.config.run.folder.absolute()
