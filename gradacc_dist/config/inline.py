"""A value as one line of YAML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel

from gradacc_dist.config.nodes import free_scalar

PLAIN = re.compile(r"(~/|/|[A-Za-z])[\w./~-]*", re.ASCII)


def inline(value: object) -> str:
    """A value as one line of YAML that the loader reads back as the same value."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float() if not math.isfinite(value):
            return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
        case int() | float():
            return repr(value)
        case str() | Path():
            return _text(str(value))
        case list() | tuple():
            return f"[{', '.join(inline(item) for item in value)}]"
        case BaseModel():
            return inline(dict(value))
        case Mapping():
            pairs = (f"{inline(key)}: {inline(inner)}" for key, inner in value.items())
            return f"{{{', '.join(pairs)}}}"
    raise AssertionError(f"a configuration cannot hold {type(value).__name__}")


def _text(text: str) -> str:
    plain = yaml.ScalarNode("tag:yaml.org,2002:str", text)
    if PLAIN.fullmatch(text) and free_scalar(plain) == text:
        return text
    return str(yaml.safe_dump(text, default_style='"', width=math.inf, allow_unicode=True)).strip()
