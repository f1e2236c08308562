"""A resolved configuration for people and for files: the table of `--check`, and YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from gradacc_dist.config.inline import inline
from gradacc_dist.config.resolved import DEFAULT, Resolved, leaves

if TYPE_CHECKING:
    from rich.table import Table

RESOLVED = "config.resolved.yaml"
"""The name of what `dump` gives, in a run's output folder."""

HEADER = ("field", "value", "source")


def dump(resolved: Resolved) -> str:
    """YAML text of every field with its source as a comment; `load` reads the same Config back."""
    lines: list[str] = []
    for name, section in resolved.config:
        lines.append(f"{name}:")
        for field, value in section:
            lines += _entry(field, value, f"{name}.{field}", "  ", resolved)
    return "\n".join(lines) + "\n"


def table(resolved: Resolved) -> str:
    """Every leaf with value and source, in aligned plain text."""
    rows = [HEADER, *_rows(resolved)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{path:{widths[0]}}  {value:{widths[1]}}  {source}" for path, value, source in rows]
    return "\n".join([*lines, _closing(resolved)])


def rich_table(resolved: Resolved) -> Table:
    """The same table for a terminal; what differs from the defaults stands out."""
    # Imported here: rich takes a third of the time that --help may take, and is not always needed.
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*HEADER, box=None, caption=_closing(resolved), caption_justify="left")
    for row in _rows(resolved):
        style = "dim" if row[2] == DEFAULT else "bold"
        drawn.add_row(*(Text(cell, style=style, overflow="fold") for cell in row))
    return drawn


def print_table(resolved: Resolved, *, is_terminal: bool) -> None:
    """Print the table to standard output, in the form that suits it."""
    if is_terminal:
        from rich.console import Console

        Console().print(rich_table(resolved))
    else:
        print(table(resolved))


def _rows(resolved: Resolved) -> Iterator[tuple[str, str, str]]:
    for path, value in leaves(resolved.config):
        yield path, inline(value), resolved.sources[path]


def _closing(resolved: Resolved) -> str:
    num_set = sum(source != DEFAULT for source in resolved.sources.values())
    return f"{len(resolved.sources)} values, {num_set} set, the rest defaults; no conflicts"


def _entry(key: object, value: object, path: str, indent: str, resolved: Resolved) -> list[str]:
    if isinstance(value, Mapping) and value:
        lines = [f"{indent}{inline(key)}:"]
        for inner_key, inner in value.items():
            lines += _entry(inner_key, inner, f"{path}.{inner_key}", indent + "  ", resolved)
        return lines
    return [f"{indent}{inline(key)}: {inline(value)}  # {resolved.sources[path]}"]
