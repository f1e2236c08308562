"""A configuration with the source of each value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gradacc_dist.config.schema import Config

DEFAULT = "default"
WITHOUT_EFFECT = frozenset({"run.output_dir", "run.overwrite", "data.cache_dir"})
SECTIONS_WITHOUT_EFFECT = frozenset({"track"})


@dataclass(frozen=True)
class Resolved:
    """What will run. `sources`: for every leaf, `default`, `file:line` or `--flag`.

    A leaf is a field, or an entry of a mapping inside one: `model.config.hidden_size`.
    """

    config: Config
    sources: dict[str, str]

    def source(self, path: str) -> str:
        """Where a field's value comes from; of a mapping, where its first entry does."""
        inside = (at for leaf, at in self.sources.items() if leaf.startswith(f"{path}."))
        return self.sources.get(path) or next(inside, DEFAULT)


def leaves(config: Config) -> Iterator[tuple[str, object]]:
    """Every leaf with its value, in the order of the schema."""
    for name, section in config:
        for field, value in section:
            yield from leaves_of(f"{name}.{field}", value)


def fingerprint(config: Config) -> str:
    """SHA-256, in hex, over what ranks must have alike when they start together: all but names of
    folders, `run.overwrite` and what is only shown. What must stay between resumes is less: see
    `identity`.
    """
    kept = {
        f"{section}.{field}": value
        for section, content in config.model_dump(mode="json").items()
        for field, value in content.items()
        if has_effect(f"{section}.{field}")
    }
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def has_effect(path: str) -> bool:
    """Whether ranks must have the field, or the entry of one, alike."""
    return path not in WITHOUT_EFFECT and path.partition(".")[0] not in SECTIONS_WITHOUT_EFFECT


def leaves_of(path: str, value: object) -> Iterator[tuple[str, object]]:
    """`value` at `path`, or each entry of a mapping by its own dotted path; an empty one is one."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from leaves_of(f"{path}.{key}", inner)
    else:
        yield path, value
