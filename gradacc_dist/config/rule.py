"""What a rule between settings is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gradacc_dist.config.inline import inline
from gradacc_dist.config.resolved import Resolved


@dataclass(frozen=True)
class Conflict:
    """Values that cannot hold together. `at`: the field or variable whose place is reported."""

    at: str
    message: str
    fields: tuple[str, ...]


Rule = Callable[[Resolved, Mapping[str, str]], Iterator[Conflict]]


def said(resolved: Resolved, path: str) -> str:
    """A field with its value and where that comes from."""
    return f"{path}: {inline(value(resolved, path))} ({resolved.source(path)})"


def value(resolved: Resolved, path: str) -> object:
    """The value of the field at `section.name`."""
    section, _, name = path.partition(".")
    return getattr(getattr(resolved.config, section), name)


def count(environ: Mapping[str, str], variable: str) -> int:
    """A count from the environment; 1 where it is unset or, like accelerate's `auto`, no number."""
    text = environ.get(variable, "")
    return max(1, int(text)) if text.isdecimal() else 1


def turns(resolved: Resolved, ranks: int) -> int | None:
    """Micro-batches that each of `ranks` accumulates; None where windows differ in examples."""
    window = resolved.config.window.examples
    if window is None:
        return None
    return -(-window // (resolved.config.micro_batch.examples * ranks))
