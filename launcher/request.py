"""What a user asks for: which run, on how many nodes and ranks, under which engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

from gradacc_dist.errors import ConfigError

SHIPPED = Path(__file__).parent / "configs"
"""The configurations that come with the project, in a wheel too."""

JOIN_SECONDS = 600


@dataclass(frozen=True)
class Nodes:
    """How many nodes: `minimum` to start with, and up to `maximum` that may join."""

    minimum: int = 1
    maximum: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of `2` or `2:8`. Raises ConfigError."""
        found = re.fullmatch(r"([1-9]\d{0,5})(?::([1-9]\d{0,5}))?", text)
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise ConfigError(f"--nodes: got {text}; needs a number, or MIN:MAX such as 2:8")
        return cls(int(found[1]), int(found[2] or found[1]))

    @property
    def is_elastic(self) -> bool:
        """Whether nodes may come and go."""
        return self.minimum < self.maximum

    def __str__(self) -> str:
        return f"{self.minimum}:{self.maximum}" if self.is_elastic else str(self.minimum)


@dataclass(frozen=True)
class Request:
    """One run to start. `flags` go to the run as they are; `config` None is the packaged demo.

    `ranks` on each node: None for one a GPU. `cpu`: CPU ranks though there may be GPUs.
    `join_seconds`: how long nodes wait for each other. `module`: what each rank runs.
    """

    config: Path | None = None
    flags: tuple[str, ...] = ()
    ranks: int | None = None
    nodes: Nodes = Nodes()
    engine: str | None = None
    cpu: bool = False
    join_seconds: int = JOIN_SECONDS
    module: str = "gradacc_dist.train"

    @property
    def program(self) -> tuple[str, ...]:
        """Module and arguments, as every launcher of ranks takes them after `-m`."""
        config = () if self.config is None else ("--config", str(self.config))
        return (self.module, *config, *self.run_flags)

    @property
    def run_flags(self) -> tuple[str, ...]:
        """The run's flags, with those that the engine asked for amounts to."""
        return (*self.flags, *(ENGINES[self.engine] if self.engine else ()))

    @property
    def train_words(self) -> tuple[str, ...]:
        """The words after `gradacc` that ask for the same."""
        return ("train", *self.command_line())

    def command_line(self) -> tuple[str, ...]:
        """The words after `gradacc train` that ask for the same; flags come last."""
        words = [] if self.config is None else ["--config", str(self.config)]
        words += ["--nodes", str(self.nodes)] if self.nodes != Nodes() else []
        words += ["--ranks", str(self.ranks)] if self.ranks is not None else []
        words += ["--engine", self.engine] if self.engine else []
        words += ["--cpu"] if self.cpu else []
        if self.join_seconds != JOIN_SECONDS:
            words += ["--join-seconds", str(self.join_seconds)]
        return (*words, *self.flags)


def _engines() -> Mapping[str, tuple[str, ...]]:
    ours = {name: ("--engine.name", name) for name in ("single", "ddp", "fsdp2")}
    deepspeed = {
        path.stem: ("--engine.deepspeed", str(path))
        for path in sorted((SHIPPED / "deepspeed").glob("*.json"))
    }
    return MappingProxyType(ours | deepspeed)


ENGINES = _engines()
"""The flags of the run by what `--engine` can say."""
