"""Ranks agree before they compute: on what a window is, and on how many items it holds.

Each rank fills one row of a small float64 matrix; one all-reduce, launched a window ahead, gives
every rank the whole. Counts are exact, and a rank that is about to do something else is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from torch import Tensor

from gradacc_dist.data.order import Window
from gradacc_dist.errors import DisagreementError
from gradacc_dist.world import SharedRows, World

Counts = Mapping[str, float]


@dataclass(frozen=True)
class LocalCounts:
    """What one rank brings to the agreement on a window.

    `fingerprint` stands for (step, example ids, config, data): equal on ranks that are about to
    compute the same thing. Below 2^48, so that float64 carries it exactly, like all the rest.
    `truncated_*`: what was cut as this rank read it. `has_mistake`: it cannot use its examples.
    """

    fingerprint: int
    num_turns: int
    input_tokens: int
    padded_tokens: int
    local_items: Counts
    truncated_examples: int = 0
    truncated_tokens: int = 0
    has_mistake: bool = False

    def row(self) -> list[float]:
        """As one row of the shared matrix."""
        head = [self.fingerprint, self.num_turns, self.input_tokens, self.padded_tokens]
        head += [self.truncated_examples, self.truncated_tokens, self.has_mistake]
        return [float(value) for value in (*head, *self.local_items.values())]


@dataclass(frozen=True)
class Agreement:
    """What all ranks hold of a window together, the same on each.

    `global_items` is each term's count over all of them: the denominators.
    """

    global_items: Counts
    input_tokens: int
    padded_tokens: int
    ranks: int
    truncated_examples: int = 0
    truncated_tokens: int = 0
    has_mistake: bool = False

    @property
    def has_items(self) -> bool:
        """False for a window whose mean loss does not exist."""
        return any(count > 0 for count in self.global_items.values())


class PendingAgreement:
    """An agreement that was launched and not yet read."""

    def __init__(self, window: Window, terms: Sequence[str], rows: SharedRows, world: World):
        self._window = window
        self._terms = terms
        self._rows = rows
        self._world = world

    def wait(self) -> Agreement:
        """Read it. Collective. Raises DisagreementError, on every rank, naming who differs."""
        matrix = self._rows.wait()
        step = f"step {self._window.step}: "
        refuse_difference(matrix[:, 0], f"{step}ids, configuration or data", self._world)
        refuse_difference(matrix[:, 1], f"{step}number of micro-batches", self._world)
        # Exact in any order: integers below 2^53.
        input_tokens, padded_tokens, cut_examples, cut_tokens, mistakes, *items = matrix.sum(
            dim=0
        ).tolist()[2:]
        return Agreement(
            dict(zip(self._terms, items, strict=True)),
            int(input_tokens),
            int(padded_tokens),
            len(matrix),
            int(cut_examples),
            int(cut_tokens),
            mistakes > 0,
        )

    def drain(self) -> None:
        """Let it arrive and ignore it, so that nothing is in flight when the ranks part."""
        self._rows.wait()


def refuse_difference(values: Tensor, what: str, world: World) -> None:
    """Raise DisagreementError, on every rank, unless `values`, one integer a rank, are equal."""
    texts = [f"{int(value):x}" for value in values.tolist()]
    (common, _), *others = Counter(texts).most_common()
    if others:
        named = ", ".join(
            f"{world.describe_rank(rank)} has {text}"
            for rank, text in enumerate(texts)
            if text != common
        )
        raise DisagreementError(
            f"{what}: the ranks disagree: {named}, the others {common}. Give every rank the same "
            "configuration file, flags, data and version of gradacc_dist",
            same_on_all_ranks=True,
        )


def agree_on_run(run_sha256: str, world: World) -> None:
    """Refuse ranks that were started for different runs. Collective; before any model is wrapped.

    Raises DisagreementError, on every rank, naming who differs.
    """
    rows = world.share_row([float(_bits(run_sha256))]).wait()
    refuse_difference(rows[:, 0], "configuration, data or code", world)


def launch_agreement(window: Window, local: LocalCounts, world: World) -> PendingAgreement:
    """Start to agree on `window`. Collective, asynchronous; on the main thread only."""
    return PendingAgreement(window, list(local.local_items), world.share_row(local.row()), world)


def fingerprint(window: Window, run_sha256: str) -> int:
    """48 bits of (step, example ids, run). `run_sha256` stands for config, data and code."""
    return _bits(f"{window.step} {window.ids_sha256} {run_sha256}")


def _bits(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:6])
