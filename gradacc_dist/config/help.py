"""The text of --help: every section with its sentence, every field with its own."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from types import MappingProxyType

from gradacc_dist.config.fields import Field, KindName, fields, sections
from gradacc_dist.config.inline import inline

WIDTH = 100
NO_BREAK = "\N{NO-BREAK SPACE}"
COLUMN = 36
PLACEHOLDERS: Mapping[KindName, str] = MappingProxyType(
    {
        "boolean": "BOOL",
        "integer": "INT",
        "number": "NUMBER",
        "text": "TEXT",
        "path": "PATH",
        "choice": "NAME",
        "list": "LIST",
        "mapping": "MAP",
        "null": "null",
    }
)


def help_text(prog: str, purpose: str) -> str:
    """Usage of an entry point, in plain text of at most 100 columns."""
    intro = (
        "Settings come from the file, and flags win over it; without a file the packaged demo is "
        "used. Values are written as in YAML: null, true, [0.9, 0.95]."
    )
    lines = [
        f"usage: {prog} [--config FILE] [--section.field VALUE ...] [--check]",
        "",
        *textwrap.wrap(purpose, WIDTH),
        "",
        *textwrap.wrap(intro, WIDTH),
        "",
        *_line("--config FILE", "YAML file of settings."),
        *_line("--check", "Validate, print every value with its source, and leave."),
        *_line("-h, --help", "Print this text and leave."),
    ]
    for section, sentence in sections().items():
        lines += ["", *textwrap.wrap(f"{section}: {sentence}", WIDTH)]
        for field in fields().values():
            if field.path.startswith(f"{section}."):
                kind = PLACEHOLDERS[field.kinds[0].name]
                lines += _line(f"--{field.path} {kind}", _meaning(field))
    return "\n".join(lines) + "\n"


def _meaning(field: Field) -> str:
    legal = f"{' | '.join(field.choices())}; " if field.choices() else ""
    default = f"default: {inline(field.default)}".replace(" ", NO_BREAK)
    return f"{field.sentence} ({legal}{default})"


def _line(left: str, meaning: str) -> list[str]:
    """A flag and its meaning in two columns; a flag too long for its column has its own line."""
    left = f"  {left}"
    wrapped = textwrap.wrap(meaning, WIDTH - COLUMN, break_on_hyphens=False)
    wrapped = [line.replace(NO_BREAK, " ") for line in wrapped]
    if len(left) + 2 > COLUMN:
        return [left, *(" " * COLUMN + line for line in wrapped)]
    return [left.ljust(COLUMN) + wrapped[0], *(" " * COLUMN + line for line in wrapped[1:])]
