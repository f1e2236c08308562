"""What nodes and node 0 say to each other in the roll call: lines of JSON.

node -> node 0   a Hello; then, when asked: its clock, what came of knocking, and of looking
node 0 -> node   Words
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import TypeAdapter

import gradacc_dist
from gradacc_dist.errors import ConfigError, GradaccError, PeerLostError, PreemptedError
from launcher.findings import Finding, Reports
from launcher.report import Report

PROGRESS_SECONDS = 5.0
"""Between two lines that say who is missing."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Hello:
    """A node's first words. `launch`: what nodes of one launch, and one try, have in common; None
    where nobody named it. `nodes`: how many it believes there to be."""

    launch: str | None
    node: int
    nodes: int
    pid: int
    report: Report
    gradacc_dist: str = gradacc_dist.__version__


@dataclass(frozen=True)
class Word:
    """What node 0 says: how far it is, what time is it there, knock at `host`:`port`, look for the
    file `text`, no, all is over, go on."""

    kind: Literal["progress", "clock", "knock", "look", "refused", "ended", "go"]
    text: str = ""
    host: str = ""
    port: int = 0
    exit_code: int = 0
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Meeting:
    """What came of it. Findings are the same on every node; `nodes` are all on node 0 only."""

    findings: tuple[Finding, ...]
    nodes: Reports

    def tell_warnings(self, say: Say) -> None:
        """To people, who may go on."""
        for each in self.findings:
            if each.level == "warning":
                say(str(each))

    def refuse_errors(self) -> None:
        """Raises ConfigError with all errors among the findings."""
        errors = [f"\n  {each}" for each in self.findings if each.level == "error"]
        if errors:
            raise ConfigError(f"the nodes cannot train together:{''.join(errors)}")


HELLO, WORD = TypeAdapter(Hello), TypeAdapter(Word)


def line_of(message: Hello | Word | float | str | bool) -> bytes:
    """As it travels."""
    content = message if isinstance(message, float | str | bool) else asdict(message)
    return json.dumps(content).encode() + b"\n"


def error_of(word: Word) -> GradaccError:
    """The error that node 0 ended with."""
    kinds = (PeerLostError, ConfigError, PreemptedError)
    kind = next((each for each in kinds if each.exit_code == word.exit_code), GradaccError)
    return kind(word.text)
