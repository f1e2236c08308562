"""YAML that people read and every reader of YAML understands alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml

# Readers differ in what they take for a number or a truth: 1e3, 0o7, y, on. What could be one
# is quoted.
PLAIN = re.compile(r"[A-Za-z/][\w./-]+", re.ASCII)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, _data: object) -> bool:
        """Write everything out: an alias is short for the writer only."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None if PLAIN.fullmatch(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def documents(objects: Sequence[Mapping[str, object]]) -> str:
    """Each object as a document, its keys in their order."""
    return "".join(
        "---\n"
        + yaml.dump(
            dict(each), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")
        )
        for each in objects
    )


def commented(text: str) -> str:
    """`text` as a comment."""
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())
