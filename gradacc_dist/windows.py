"""A rank's share of each window: planned, loaded and counted ahead, then agreed on by all ranks.

A background thread assembles windows; the main thread launches their agreements. When the loop
receives window n, it and its agreement were under way while window n - 1 was computed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gradacc_dist.agreement import (
    Agreement,
    Counts,
    LocalCounts,
    PendingAgreement,
    fingerprint,
    launch_agreement,
)
from gradacc_dist.data.batch import MicroBatch, collate
from gradacc_dist.data.order import Window
from gradacc_dist.data.plan import plan
from gradacc_dist.data.prefetch import prefetched
from gradacc_dist.data.tokens import ById, Example
from gradacc_dist.errors import DataError
from gradacc_dist.objectives.terms import Objective
from gradacc_dist.world import World


@dataclass(frozen=True)
class LocalWindow:
    """One rank's share of a window, ready to run.

    `local_items[i]` are the counts of `micro_batches[i]`; `num_micro_batches` is the number of real
    ones over all ranks; `counts` is what this rank brings to the agreement. `mistake`: what is
    wrong with the data of this rank's share, which then is filler.
    """

    window: Window
    micro_batches: Sequence[MicroBatch]
    local_items: Sequence[Counts]
    num_micro_batches: int
    counts: LocalCounts
    mistake: str = ""


@dataclass(frozen=True)
class Assembler:
    """Makes LocalWindows. Safe in a background thread: it reads data and touches no device.

    `run_sha256` stands for everything on which the ranks must agree before they start a window.
    """

    tokens: ById
    objective: Objective
    micro_batch_examples: int
    rank: int
    ranks: int
    run_sha256: str

    def assemble(self, window: Window) -> LocalWindow:
        """Plan `window`, and load and count this rank's micro-batches."""
        whole = plan(window.example_ids, self.micro_batch_examples, self.ranks)
        cells = whole.ranks[self.rank]
        loaded: list[list[Example]] = [[] for _ in cells]
        mistake = ""
        try:
            loaded = [self.tokens.examples(cell.example_ids) for cell in cells]
        except DataError as error:
            # Only this rank met it. The others hear of it in the agreement, and stop at this step.
            mistake = str(error)
        micro_batches = [
            collate(cell.index, examples) for cell, examples in zip(cells, loaded, strict=True)
        ]
        lost = [example.num_lost_tokens for examples in loaded for example in examples]
        items = [self.objective.count(batch) for batch in micro_batches]
        counts = LocalCounts(
            fingerprint=fingerprint(window, self.run_sha256),
            num_turns=len(micro_batches),
            input_tokens=sum(batch.input_tokens for batch in micro_batches),
            padded_tokens=sum(batch.padded_tokens for batch in micro_batches),
            local_items={
                term: sum(counts[term] for counts in items) for term in self.objective.weights
            },
            truncated_examples=sum(num_tokens > 0 for num_tokens in lost),
            truncated_tokens=sum(lost),
            has_mistake=bool(mistake),
        )
        return LocalWindow(window, micro_batches, items, whole.num_micro_batches, counts, mistake)


def agreed_windows(
    windows: Iterable[Window], assembler: Assembler, world: World
) -> Generator[tuple[LocalWindow, Agreement]]:
    """Each of `windows` with its agreement. Collective; consume on the main thread.

    The agreement on window n + 1 is launched before window n is yielded, so that it travels while
    window n is computed. An agreement in flight is drained when the consumer stops early. A
    DataError ends it after the windows before the mistake.
    """
    mistakes: list[DataError] = []
    upcoming: PendingAgreement | None = None
    previous: LocalWindow | None = None
    with prefetched(assembler.assemble, windows) as locals_:
        try:
            for local in _until_mistake(locals_, mistakes):
                pending, upcoming = upcoming, launch_agreement(local.window, local.counts, world)
                if previous is not None and pending is not None:
                    yield previous, _agreed(previous, pending, world)
                previous = local
            if previous is not None and upcoming is not None:
                last, upcoming = upcoming, None
                yield previous, _agreed(previous, last, world)
            for mistake in mistakes:
                raise mistake
        finally:
            if upcoming is not None:
                # After an error the peers may be gone; the first cause is what counts then.
                with suppress(RuntimeError):
                    upcoming.drain()


def _until_mistake(
    locals_: Iterable[LocalWindow], mistakes: list[DataError]
) -> Iterator[LocalWindow]:
    """`locals_` up to a mistake in the data of the next, which goes to `mistakes`."""
    try:
        yield from locals_
    except DataError as error:
        mistakes.append(error)


def _agreed(local: LocalWindow, pending: PendingAgreement, world: World) -> Agreement:
    """Wait for it. Collective. Raises a rank's DataError, on every rank alike."""
    agreement = pending.wait()
    if agreement.has_mistake:
        told = next(text for text in world.share_text(local.mistake) if text)
        raise DataError(f"step {local.window.step}: {told}", same_on_all_ranks=True)
    return agreement
