"""From a YAML file and flags to a Config, or to one error that lists every mistake."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from gradacc_dist.config.draft import Draft
from gradacc_dist.config.fields import Field, fields, nested, shown
from gradacc_dist.config.flags import split
from gradacc_dist.config.hints import nearest
from gradacc_dist.config.mistakes import Mistakes, Place
from gradacc_dist.config.nodes import Origin
from gradacc_dist.config.resolved import DEFAULT, Resolved, leaves
from gradacc_dist.config.rules import conflicts
from gradacc_dist.config.schema import Config

DEMO = "demo.yaml"


def load(
    path: Path | None, flags: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> Resolved:
    """Read a configuration file (None: the packaged demo) and flags, which win over it.

    Raises ConfigError with every mistake of the file, the flags and the environment at once.
    """
    draft = Draft()
    name = f"gradacc_dist/config/{DEMO}" if path is None else str(path)
    text = _text_of(path, draft.mistakes)
    is_readable = text is not None and draft.read_file(text, Origin(name, is_file=True))
    draft.read_flags(split(flags))
    draft.report_unknown()
    config = _validated(draft, name)
    places = draft.reader.places
    sources = {leaf: str(places.get(leaf, DEFAULT)) for leaf, _ in leaves(config)}
    resolved = Resolved(config, sources)
    if is_readable:
        _apply_rules(draft, resolved, environ, Place(name, 0))
    draft.mistakes.raise_if_any()
    return resolved


def read_back(path: Path) -> Config:
    """The Config of a file that a run has left (config.resolved.yaml); no rule judges it.

    Raises ConfigError.
    """
    draft = Draft()
    text = _text_of(path, draft.mistakes)
    if text is not None:
        draft.read_file(text, Origin(str(path), is_file=True))
    draft.report_unknown()
    config = _validated(draft, str(path))
    draft.mistakes.raise_if_any()
    return config


def _text_of(path: Path | None, mistakes: Mistakes) -> str | None:
    if path is None:
        return resources.files(__package__).joinpath(DEMO).read_text(encoding="utf-8")
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        mistakes.add(Place(str(path), 0), f"there is no such file (looked in {Path.cwd()})")
    except OSError as error:
        mistakes.add(Place(str(path), 0), f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        mistakes.add(Place(str(path), 0), message)
    return None


def _validated(draft: Draft, name: str) -> Config:
    """The Config of all values that the schema takes; each one that it does not is a mistake."""
    values = dict(draft.reader.values)
    try:
        return Config.model_validate(nested(values))
    except ValidationError as error:
        broken = dict.fromkeys(_field_of(item["loc"]) for item in error.errors(include_url=False))
    for field in broken:
        place = draft.reader.places.get(field.path, Place(name, 0))
        message = _not_accepted(field, values.pop(field.path))
        draft.mistakes.add(place, message, [field.path])
    return Config.model_validate(nested(values))


def _field_of(location: tuple[int | str, ...]) -> Field:
    path = ".".join(str(part) for part in location[:2])
    assert path in fields(), f"a rule about several fields ({path}) belongs into config/rules.py"
    return fields()[path]


def _not_accepted(field: Field, value: object) -> str:
    got = "nothing (null)" if value is None else shown(value)
    likely = nearest(str(value), field.choices())
    meant = f"; did you mean {likely[0]}?" if likely else ""
    sentence = field.sentence.rstrip(".")
    return f"{field.path}: got {got}; needs {field.needs()}{meant} ({sentence})"


def _apply_rules(draft: Draft, resolved: Resolved, environ: Mapping[str, str], file: Place) -> None:
    """Report broken rules, save those about a value that another mistake left undecided."""
    undecided = draft.mistakes.undecided_fields()
    for conflict in conflicts(resolved, environ):
        is_decided = undecided.isdisjoint(
            {*conflict.fields, *(path.partition(".")[0] for path in conflict.fields)}
        )
        if is_decided and conflict.at in environ:
            place = Place(f"{conflict.at}={environ[conflict.at]} (environment)")
            draft.mistakes.add(place, conflict.message)
        elif is_decided:
            draft.mistakes.add(draft.reader.places.get(conflict.at, file), conflict.message)
