"""What someone who wrote an unknown name probably meant."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence

from gradacc_dist.config.fields import accepts, fields, sections
from gradacc_dist.config.foreign import FOREIGN, UNSET, Advice
from gradacc_dist.config.inline import inline

COMMANDS = ("config", "check", "help")


def unknown(
    path: str, value: object, given: Mapping[str, object], *, is_flag: bool = False
) -> tuple[str, tuple[str, ...]]:
    """The message for an unknown name, and the fields that it leaves undecided.

    `given`: every setting found under a foreign name, since some answers need two of them.
    """
    section, _, name = path.rpartition(".")
    is_section = not section and isinstance(value, dict)
    what = f"{path}: unknown {'flag' if is_flag else 'section' if is_section else 'key'}"
    translation = FOREIGN.get(_spelled(name))
    if translation is not None:
        advice = translation(value, given)
        return f"{what}; {_answer(advice, is_flag)}", (advice.field,) if advice.field else ()
    if path in fields():
        inner = f"{section}: {{{name}: {inline(value)}}}"
        return f"{path}: a name with a dot is two levels in a file; write {inner}", (path,)
    likely = _likely(path, is_section)
    if len(likely) == 1 and likely[0].rpartition(".")[2] == name:
        return f"{what}; {_answer(Advice(likely[0], value), is_flag)}", tuple(likely)
    if not likely and is_flag:
        likely = nearest(path, COMMANDS)
    if likely:
        names = [_as_flag(other) if is_flag else other for other in likely]
        return f"{what}; did you mean {any_of(names)}?", tuple(likely)
    return f"{what}; {_what_there_is(section)}", ()


def is_telling(name: str) -> bool:
    """Whether a name means something by itself, wherever it stands."""
    return _spelled(name) in FOREIGN or bool(_elsewhere(name))


def nearest(word: str, words: Iterable[str], most: int = 1) -> list[str]:
    """The legal words that look most like this one; none if none does."""
    by_spelling = {_spelled(other): other for other in words}
    close = difflib.get_close_matches(_spelled(word), by_spelling, n=most)
    return [by_spelling[other] for other in close]


def names_in(section: str) -> list[str]:
    """The names of a section's fields."""
    return [path.rpartition(".")[2] for path in fields() if path.rpartition(".")[0] == section]


def any_of(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _spelled(word: str) -> str:
    return word.lower().replace("-", "_")


def _elsewhere(name: str) -> list[str]:
    """Fields of this very name, in whatever section."""
    return [path for path in fields() if path.rpartition(".")[2] == name]


def _likely(path: str, is_section: bool) -> list[str]:
    section, _, name = _spelled(path).rpartition(".")
    if is_section:
        return nearest(name, sections())
    for near in nearest(section, sections()):
        if f"{near}.{name}" in fields():
            return [f"{near}.{name}"]
    exact = _elsewhere(name)
    if section in sections():
        here = [f"{section}.{other}" for other in nearest(name, names_in(section))]
        exact = list(dict.fromkeys([*here, *exact]))
    leaves = {other.rpartition(".")[2]: None for other in fields()}
    near_section = [] if section else nearest(name, sections())
    return (
        exact
        or near_section
        or [same for leaf in nearest(name, leaves) for same in _elsewhere(leaf)]
    )


def _as_flag(name: str) -> str:
    return f"--{name}.FIELD" if name in sections() else f"--{name}"


def _answer(advice: Advice, is_flag: bool) -> str:
    if advice.field is None:
        return advice.note
    name = f"--{advice.field}" if is_flag else f"{advice.field}:"
    note = f" ({advice.note})" if advice.note else ""
    if advice.formula:
        return f"write {name} {advice.formula}{note}"
    if advice.value is UNSET:
        return f"use {name.rstrip(':')}{note}"
    if not isinstance(advice.value, dict) and accepts(advice.field, advice.value):
        text = inline(advice.value)
        return f"write {name} {shlex.quote(text) if is_flag else text}{note}"
    return f"use {name.rstrip(':')}, which needs {fields()[advice.field].needs()}{note}"


def _what_there_is(section: str) -> str:
    if section in sections():
        return f"the fields of {section} are {', '.join(names_in(section))}"
    return f"the sections are {', '.join(sections())}"
