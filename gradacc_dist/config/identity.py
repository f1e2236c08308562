"""Which fields decide a run's result: those that must stay when it is continued elsewhere.

The others say where it runs, how fast, and what is seen of it: cluster, engine, micro-batch,
evaluations, checkpoints, trackers and folders are free.
"""

from __future__ import annotations

from collections.abc import Mapping

from gradacc_dist.config.resolved import leaves_of
from gradacc_dist.config.schema import Config

SECTIONS = frozenset({"data", "window", "model", "objective", "optimizer", "schedule", "precision"})
ALONE = frozenset({"run.seed"})
FREE = frozenset({"data.cache_dir"})


def identity(config: Config) -> dict[str, object]:
    """The deciding fields with their values, as JSON has them, by `section.field`."""
    tree = config.model_dump(mode="json")
    return {
        f"{section}.{field}": value
        for section, content in tree.items()
        for field, value in content.items()
        if decides(f"{section}.{field}")
    }


def decides(path: str) -> bool:
    """Whether the result follows from the field at `section.field`."""
    return path in ALONE or (path.partition(".")[0] in SECTIONS and path not in FREE)


def flat(values: Mapping[str, object]) -> dict[str, object]:
    """`values` with each entry of a mapping by its own: `model.config.hidden_size`."""
    return dict(leaf for path, value in values.items() for leaf in leaves_of(path, value))
