"""Mistakes in a configuration: collected while it is read, then told all at once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from gradacc_dist.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """Where a value was written: a line of a file, a flag, or a variable of the environment.

    `line` and `column` count from 1; line 0 is the file as a whole, None is no file at all.
    """

    name: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.name, self.line, self.column) if part)


@dataclass(frozen=True)
class Mistake:
    """One thing to put right. `fields`: those it leaves undecided, so that no rule judges them."""

    place: Place
    message: str
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line; a flag names its field already, so that the message need not."""
        flag = self.place.name.lstrip("-") if self.place.line is None else ""
        return f"{self.place}: {self.message.removeprefix(f'{flag}: ')}"


@dataclass
class Mistakes:
    """The mistakes found so far."""

    found: list[Mistake] = field(default_factory=list)

    def add(self, place: Place, message: str, fields: Collection[str] = ()) -> None:
        """Note one mistake."""
        self.found.append(Mistake(place, message, tuple(fields)))

    def undecided_fields(self) -> frozenset[str]:
        """Fields whose value is unknown because of a mistake."""
        return frozenset(name for mistake in self.found for name in mistake.fields)

    def raise_if_any(self) -> None:
        """Raise one ConfigError that lists every mistake: file by line, then flags, then rest."""
        if not self.found:
            return
        in_order = sorted(
            self.found, key=lambda mistake: (mistake.place.line is None, mistake.place.line or 0)
        )
        lines = [str(mistake) for mistake in in_order]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        lines.append(f"{count} in the configuration; --help lists every field and its meaning.")
        raise ConfigError("\n".join(lines))
