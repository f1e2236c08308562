"""The command line: which file, which flags, and what is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOCAL_RANK = ("--local_rank", "--local-rank")


@dataclass(frozen=True)
class CommandLine:
    """A command line taken apart, nothing judged: `load` reports what is wrong in `flags`."""

    path: Path | None
    flags: tuple[str, ...]
    check: bool
    help: bool


@dataclass(frozen=True)
class Flag:
    """One `--name value` or `--name=value`; `text` is None where no value follows.

    A stray argument is a flag whose name does not start with `-`.
    """

    name: str
    text: str | None

    @property
    def path(self) -> str:
        """The name without its dashes."""
        return self.name.lstrip("-")


def parse_command_line(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> CommandLine:
    """Pick out `--config`, `--check` and `--help`; never raises, and keeps all else in order.

    The `deepspeed` launcher adds `--local_rank`, of which the environment says the same: left out.
    """
    path: Path | None = None
    rest: list[str] = []
    check = wants_help = False
    for flag in split(argv):
        if flag.name == "--config" and flag.text and path is None:
            path = Path(flag.text)
        elif flag.name in ("-h", "--help"):
            wants_help = True
        elif flag.name == "--check":
            check = True
            rest += [flag.text] if flag.text is not None else []
        elif flag.name in LOCAL_RANK and flag.text and flag.text == environ.get("LOCAL_RANK"):
            continue
        else:
            rest += [flag.name] if flag.text is None else [f"{flag.name}={flag.text}"]
    return CommandLine(path, tuple(rest), check, wants_help)


def split(tokens: Sequence[str]) -> list[Flag]:
    """Pair every flag with its value. After a dash, only a number is a value."""
    found: list[Flag] = []
    waiting = list(reversed(tokens))
    while waiting:
        name, equals, text = waiting.pop().partition("=")
        if not name.startswith("-"):
            found.append(Flag(name + equals + text, None))
        elif equals:
            found.append(Flag(name, text))
        elif name not in ("-h", "--help", "--check") and waiting and _is_value(waiting[-1]):
            found.append(Flag(name, waiting.pop()))
        else:
            found.append(Flag(name, None))
    return found


def _is_value(token: str) -> bool:
    return not token.startswith("-") or token[1:2].isdecimal() or token[1:2] == "."
