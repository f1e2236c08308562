"""The fields of the schema as data: path, sentence, default, and what a value must be."""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from gradacc_dist.config.schema import Config, Section

KindName = Literal[
    "null", "boolean", "integer", "number", "text", "path", "choice", "list", "mapping"
]


@dataclass(frozen=True)
class Kind:
    """One form that a value may take. `items`: of a list, the forms of each position.

    `entries`: of a mapping whose keys are known, each key with the forms of its value.
    """

    name: KindName
    bounds: str = ""
    choices: tuple[str, ...] = ()
    items: tuple[tuple[Kind, ...], ...] = ()
    entries: tuple[tuple[str, tuple[Kind, ...]], ...] = ()


@dataclass(frozen=True)
class Field:
    """One field of the schema; `path` is `section.field`, `kinds` are alternatives."""

    path: str
    sentence: str
    default: object
    kinds: tuple[Kind, ...]

    def has(self, *names: KindName) -> bool:
        """Whether a value may take one of these forms."""
        return any(kind.name in names for kind in self.kinds)

    def choices(self) -> tuple[str, ...]:
        """The legal words, for a field that has such a list."""
        return tuple(word for kind in self.kinds for word in kind.choices)

    def needs(self) -> str:
        """What a value must be, in words."""
        return _needs(self.kinds)


@functools.cache
def fields() -> Mapping[str, Field]:
    """Every field by its path, in the order of the schema."""
    found = {
        f"{name}.{leaf}": _field(f"{name}.{leaf}", info, getattr(section, leaf))
        for name, section in Config()
        for leaf, info in type(section).model_fields.items()
    }
    return types.MappingProxyType(found)


@functools.cache
def sections() -> Mapping[str, str]:
    """The sentence of every section by its name, in the order of the schema."""
    found = {name: (type(section).__doc__ or "").strip() for name, section in Config()}
    return types.MappingProxyType(found)


def owner(path: str) -> Field | None:
    """The field that `path` names or, for `model.config.hidden_size`, lies inside of."""
    if path in fields():
        return fields()[path]
    parent, dot, _ = path.rpartition(".")
    field = owner(parent) if dot else None
    return field if field is not None and field.has("mapping") else None


def nested(values: Mapping[str, object]) -> dict[str, Any]:
    """`{"window.examples": 8}` as `{"window": {"examples": 8}}`."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return tree


def accepts(path: str, value: object) -> bool:
    """Whether the schema takes this value for this field."""
    try:
        Config.model_validate(nested({path: value}))
    except ValidationError:
        return False
    return True


def shown(value: object) -> str:
    """A value as it appears in messages: text in quotes, long ones cut, always printable."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _field(path: str, info: FieldInfo, default: object) -> Field:
    return Field(
        path, info.description or "", default, tuple(_kinds(info.annotation, info.metadata))
    )


def _kinds(annotation: Any, constraints: Iterable[object] = ()) -> Iterator[Kind]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    plain: dict[Any, KindName] = {
        type(None): "null",
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "text",
        Path: "path",
    }
    if origin is Annotated:
        yield from _kinds(arguments[0], arguments[1:])
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _kinds(argument)
    elif origin is Literal:
        yield Kind("choice", choices=tuple(str(word) for word in arguments))
    elif origin in (list, tuple):
        positions = [argument for argument in arguments if argument is not ...]
        yield Kind("list", items=tuple(tuple(_kinds(position)) for position in positions))
    elif origin is dict:
        yield Kind("mapping")
    elif isinstance(annotation, type) and issubclass(annotation, Section):
        inner = annotation.model_fields.items()
        entries = ((name, tuple(_kinds(info.annotation, info.metadata))) for name, info in inner)
        yield Kind("mapping", entries=tuple(entries))
    else:
        assert annotation in plain, f"config/fields.py cannot describe {annotation} yet; add it"
        yield Kind(plain[annotation], bounds=" and ".join(_bounds(constraints)))


def _bounds(constraints: Iterable[object]) -> Iterator[str]:
    for constraint in constraints:
        match constraint:
            case FieldInfo():
                yield from _bounds(constraint.metadata)
            case Gt(gt=bound):
                yield f"> {bound}"
            case Ge(ge=bound):
                yield f">= {bound}"
            case Lt(lt=bound):
                yield f"< {bound}"
            case Le(le=bound):
                yield f"<= {bound}"


def _needs(kinds: tuple[Kind, ...]) -> str:
    in_words = {
        "boolean": "true or false",
        "integer": "an integer",
        "number": "a number",
        "text": "text",
        "path": "a path",
        "mapping": "a mapping of keys to values",
        "null": "null",
    }
    phrases = []
    for kind in sorted(kinds, key=lambda kind: kind.name == "null"):
        if kind.name == "choice":
            phrases.append("one of " + ", ".join(kind.choices))
        elif kind.name == "list":
            each = " / ".join(dict.fromkeys(_needs(item) for item in kind.items))
            length = f" of {len(kind.items)}" if len(kind.items) > 1 else ""
            phrases.append(f"a list{length} [...], each {each}")
        elif kind.entries:
            phrases.append(f"a mapping {{{', '.join(f'{name}: ...' for name, _ in kind.entries)}}}")
        else:
            phrases.append(f"{in_words[kind.name]} {kind.bounds}".strip())
    return ", or ".join(phrases)
