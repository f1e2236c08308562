"""YAML nodes to values: the schema decides what a text means, and every value keeps its line.

YAML's own guesses are what surprises people: PyYAML reads `5e-5` as text, `no` as false where a
word is meant, `010` as 8 and `2024-01-01` as a date. So a scalar's text is read as what its field
takes; only where anything goes (inside model.config) does its look decide.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import yaml

from gradacc_dist.config.fields import Field, Kind, KindName
from gradacc_dist.config.mistakes import Mistakes, Place

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
TRUE = frozenset({"true", "yes", "on"})
FALSE = frozenset({"false", "no", "off"})
INTEGER = re.compile(r"[-+]?\d[\d_]{0,4000}")  # int() refuses more than 4300 digits
NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")
SPECIAL = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """Where a YAML text came from: a file, in which lines matter, or one flag."""

    name: str
    is_file: bool

    def place(self, node: yaml.Node) -> Place:
        """The place of a node of this text."""
        return Place(self.name, node.start_mark.line + 1 if self.is_file else None)


def compose(text: str, origin: Origin, mistakes: Mistakes) -> yaml.Node | None:
    """The root node of a text; None when it is empty, or broken, which is then noted."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None or (looped := _node_inside_itself(root)) is None:
            return root
        message = "an alias (*) stands inside of what it stands for; write the value out"
        mistakes.add(origin.place(looped), message)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(origin.name)
        if origin.is_file and mark is not None:
            place = Place(origin.name, mark.line + 1, mark.column + 1)
        problem = " ".join(part for part in (error.context, error.problem) if part)
        message = f"not YAML: {problem}; look at indentation (no tabs), colons and quotes here"
        mistakes.add(place, message)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if origin.is_file else None
        message = f"not YAML: the character with code {error.character} is not allowed; remove it"
        mistakes.add(Place(origin.name, line), message)
    return None


@dataclass
class Reader:
    """Turns nodes into values, noting the place of each leaf; what is read later wins.

    `values` is by field path, `places` by leaf path, which goes deeper inside a mapping.
    """

    mistakes: Mistakes
    values: dict[str, object] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)

    def read_field(self, target: Field, node: yaml.Node, origin: Origin) -> None:
        """Read one field's value as the kind of value that the field takes."""
        self.values[target.path] = self._typed(node, target.path, target.kinds, origin)

    def read_inside(self, target: Field, path: str, node: yaml.Node, origin: Origin) -> None:
        """Set one entry (`model.config.hidden_size`) within the mapping a field holds."""
        existing = self.values.get(target.path)
        root = inner = dict(existing) if isinstance(existing, dict) else {}
        *parents, name = path.removeprefix(target.path + ".").split(".")
        for parent in parents:
            deeper = inner.get(parent)
            inner[parent] = dict(deeper) if isinstance(deeper, dict) else {}
            inner = inner[parent]
        inner[name] = self.free(node, path, origin)
        self.values[target.path] = root

    def entries(
        self, node: yaml.MappingNode, path: str, origin: Origin
    ) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        """The pairs of a mapping, less those that cannot be meant, which are noted."""
        kept: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.mistakes.add(
                    origin.place(key),
                    "a key must be one word, not a list or mapping; quote it if it is text",
                )
            elif key.tag == "tag:yaml.org,2002:merge":
                message = f"{_join(path, key.value)}: merge keys are not read; write the fields out"
                self.mistakes.add(origin.place(key), message)
            elif key.value in kept:
                first = origin.place(kept[key.value][0])
                message = f"{_join(path, key.value)}: given twice, first at {first}; keep one"
                self.mistakes.add(origin.place(key), message, [_join(path, key.value)])
            else:
                kept[key.value] = (key, value)
        return list(kept.values())

    def free(self, node: yaml.Node, path: str, origin: Origin) -> object:
        """A value by its look alone, for where the schema takes anything."""
        value: object = None
        if isinstance(node, yaml.MappingNode):
            value = {
                (name := free_scalar(key)): self.free(item, _join(path, str(name)), origin)
                for key, item in self.entries(node, path, origin)
            }
        elif isinstance(node, yaml.SequenceNode):
            value = [self.free(item, path, origin) for item in node.value]
        elif isinstance(node, yaml.ScalarNode):
            self._refuse_tag(node, path, origin)
            value = free_scalar(node)
        self.places[path] = origin.place(node)  # last: the items of a list share its path
        return value

    def _typed(self, node: yaml.Node, path: str, kinds: tuple[Kind, ...], origin: Origin) -> object:
        names = {kind.name for kind in kinds}
        value: object
        if isinstance(node, yaml.ScalarNode):
            self._refuse_tag(node, path, origin)
            is_null = node.style is None and node.value in NULLS
            value = None if is_null else _typed_scalar(node.value, names)
        elif isinstance(node, yaml.SequenceNode) and "list" in names:
            items = next(kind.items for kind in kinds if kind.name == "list")
            value = [
                self._typed(item, path, items[position % len(items)], origin)
                for position, item in enumerate(node.value)
            ]
        elif isinstance(node, yaml.MappingNode) and "mapping" in names:
            known = dict(next(kind.entries for kind in kinds if kind.name == "mapping"))
            value = {
                key.value: self._typed(item, _join(path, key.value), known[key.value], origin)
                if key.value in known
                else self.free(item, _join(path, key.value), origin)
                for key, item in self.entries(node, path, origin)
            }
        else:
            value = self.free(node, path, origin)
        self.places[path] = origin.place(node)
        return value

    def _refuse_tag(self, node: yaml.ScalarNode, path: str, origin: Origin) -> None:
        implicit = (node.style is None, node.style is not None)
        implied = yaml.resolver.Resolver().resolve(  # type: ignore[no-untyped-call]
            yaml.ScalarNode, node.value, implicit
        )
        if node.tag != implied:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            message = f"{path}: the tag {tag} is not read; remove it, or quote text"
            self.mistakes.add(origin.place(node), message, [path])


def _node_inside_itself(node: yaml.Node, parents: tuple[yaml.Node, ...] = ()) -> yaml.Node | None:
    if node in parents:
        return node
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    found = (_node_inside_itself(part, (*parents, node)) for part in inner)
    return next((looped for looped in found if looped is not None), None)


def free_scalar(node: yaml.ScalarNode) -> object:
    """A scalar by its look: quoted is text, otherwise null, true/false, number or text."""
    text = str(node.value)
    if node.style is not None:
        return text
    if text in NULLS:
        return None
    if text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    if INTEGER.fullmatch(text):
        return int(text.replace("_", ""))
    if NUMBER.fullmatch(text):
        return float(text.replace("_", ""))
    if SPECIAL.fullmatch(text):
        return float(text.lower().replace(".", ""))
    return text


def _typed_scalar(text: str, names: set[KindName]) -> object:
    """Numbers that pydantic does not know (`1e3` as a count); it reads `8`, `no`, `5e-5` itself."""
    digits = text.replace("_", "")
    if not names & {"integer", "number"}:
        return text
    if INTEGER.fullmatch(text):
        return int(digits)
    if NUMBER.fullmatch(text):
        number = float(digits)
        if "integer" in names and number.is_integer() and abs(number) < 2**53:
            return int(number)
        if "number" in names and math.isfinite(number):
            return number
    return text


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
