"""A configuration being read: what was set so far, where, and what nobody could place."""

from __future__ import annotations

from dataclasses import dataclass, field

import yaml

from gradacc_dist.config import hints
from gradacc_dist.config.fields import fields, owner, sections, shown
from gradacc_dist.config.flags import Flag
from gradacc_dist.config.foreign import FOREIGN, UNSET
from gradacc_dist.config.mistakes import Mistakes, Place
from gradacc_dist.config.nodes import NULLS, Origin, Reader, compose


@dataclass(frozen=True)
class Unknown:
    """A name that the schema does not have, and the value it was given."""

    place: Place
    path: str
    value: object
    is_flag: bool


@dataclass
class Draft:
    """Filled by reading the file, then the flags."""

    mistakes: Mistakes = field(default_factory=Mistakes)
    unknown: list[Unknown] = field(default_factory=list)
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = Reader(self.mistakes)

    def read_file(self, text: str, origin: Origin) -> bool:
        """Read a YAML text; False where it is not one, so that nothing is known of its fields."""
        num_mistakes = len(self.mistakes.found)
        root = compose(text, origin, self.mistakes)
        if isinstance(root, yaml.MappingNode):
            for key, node in self.reader.entries(root, "", origin):
                self._read_top(key.value, node, origin.place(key), origin)
            return True
        if root is not None:
            message = f"a configuration is made of sections ({', '.join(sections())}), not of "
            message += "a list" if isinstance(root, yaml.SequenceNode) else shown(root.value)
            self.mistakes.add(origin.place(root), message)
        return len(self.mistakes.found) == num_mistakes

    def read_flags(self, flags: list[Flag]) -> None:
        """Read flags over what the file set; the same flag twice is a contradiction."""
        seen: dict[str, Flag] = {}
        for flag in flags:
            first = seen.setdefault(flag.name, flag)
            if first is not flag:
                message = f"given twice, {shown(first.text)} and {shown(flag.text)}; keep one"
                self.mistakes.add(Place(flag.name), message)
            else:
                self._read_flag(flag)

    def report_unknown(self) -> None:
        """Turn unknown names into mistakes, once all are known: some answers need two of them."""
        given = {
            name: item.value
            for item in self.unknown
            if (name := item.path.rpartition(".")[2]) in FOREIGN or name == "learning_rate"
        }
        for item in self.unknown:
            message, undecided = hints.unknown(item.path, item.value, given, is_flag=item.is_flag)
            self.mistakes.add(item.place, message, undecided)

    def _read_top(self, name: str, node: yaml.Node, place: Place, origin: Origin) -> None:
        if name not in sections():
            self._note_unknown(name, node, place, origin)
        elif isinstance(node, yaml.MappingNode):
            for key, value in self.reader.entries(node, name, origin):
                path = f"{name}.{key.value}"
                if path in fields():
                    self.reader.read_field(fields()[path], value, origin)
                else:
                    self._note_unknown(path, value, origin.place(key), origin)
        elif not (isinstance(node, yaml.ScalarNode) and node.value in NULLS):
            got = shown(self.reader.free(node, name, origin))
            legal = ", ".join(hints.names_in(name))
            message = f"{name}: got {got}; this is a section, and below it come its fields: {legal}"
            self.mistakes.add(place, message, [name])

    def _note_unknown(self, path: str, node: yaml.Node, place: Place, origin: Origin) -> None:
        """Note a name nobody knows and, inside of it, the names that mean something else."""
        self.unknown.append(Unknown(place, path, _value_of(node, origin), is_flag=False))
        if not isinstance(node, yaml.MappingNode) or path in FOREIGN:
            return
        meant = hints.nearest(path, sections())
        for key, inner in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            is_right = bool(meant) and f"{meant[0]}.{key.value}" in fields()
            is_block = isinstance(inner, yaml.MappingNode)
            if not is_right and (is_block or hints.is_telling(key.value)):
                self._note_unknown(f"{path}.{key.value}", inner, origin.place(key), origin)

    def _read_flag(self, flag: Flag) -> None:
        place = Place(flag.name)
        target = owner(flag.path)
        if not flag.name.startswith("-"):
            self.mistakes.add(place, _stray(flag.name))
        elif flag.name == "--config":
            problem = "given twice; keep one" if flag.text else "needs the path of a YAML file"
            self.mistakes.add(place, problem)
        elif flag.name in (f"--{name}" for name in sections()):
            legal = ", ".join(f"{flag.name}.{name}" for name in hints.names_in(flag.path))
            self.mistakes.add(place, f"is a section; set its fields: {legal}")
        elif target is None or not flag.name.startswith("--"):
            value = UNSET if flag.text is None else _value_of_text(flag.text)
            self.unknown.append(Unknown(place, flag.path, value, is_flag=True))
        elif flag.text is None and not target.has("boolean"):
            self.mistakes.add(place, f"needs a value: {target.needs()}", [target.path])
        else:
            self._read_value(flag, Origin(flag.name, is_file=False))

    def _read_value(self, flag: Flag, origin: Origin) -> None:
        target = owner(flag.path)
        assert target is not None, "only flags of a field are read"
        text = "true" if flag.text is None else flag.text
        node: yaml.Node | None
        is_list = target.has("list") and text.startswith("[{")
        if target.has("text", "path", "choice") and text not in NULLS and not is_list:
            # The shell has already taken one pair of quotes off: what is left is meant.
            node = _scalar(text, quoted=True)
        else:
            num_mistakes = len(self.mistakes.found)
            node = compose(text, origin, self.mistakes)
            if len(self.mistakes.found) > num_mistakes:
                return
        node = node or _scalar("", quoted=False)
        if target.path == flag.path:
            self.reader.read_field(target, node, origin)
        else:
            self.reader.read_inside(target, flag.path, node, origin)


def _value_of(node: yaml.Node, origin: Origin) -> object:
    """What an unknown name was given. Mistakes inside do not count until the name is right."""
    return Reader(Mistakes()).free(node, "", origin)


def _value_of_text(text: str) -> object:
    origin = Origin("flag", is_file=False)
    node = compose(text, origin, Mistakes())
    return text if node is None else _value_of(node, origin)


def _scalar(text: str, *, quoted: bool) -> yaml.ScalarNode:
    start = yaml.Mark("flag", 0, 0, 0, None, 0)
    return yaml.ScalarNode(
        "tag:yaml.org,2002:str" if quoted else "tag:yaml.org,2002:null",
        text,
        start,
        start,
        style='"' if quoted else None,
    )


def _stray(word: str) -> str:
    if word.endswith((".yaml", ".yml", ".json")):
        return f"is not a flag; a configuration file is given by --config {word}"
    likely = hints.nearest(word, [*fields(), *(path.rpartition(".")[2] for path in fields())])
    names = [f"--{path}" for path in fields() if likely and f".{path}".endswith(f".{likely[0]}")]
    meant = f"; did you mean {hints.any_of(names)}?" if names else ""
    return f"is not a flag; settings are written --section.field value{meant}"
