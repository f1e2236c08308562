"""When checkpoints are saved, and what becomes of one that cannot be.

The loop calls it at the end of each window. Everything that decides travels with the window's loss
(`news`), so that all ranks decide alike at the same step, and no rank waits for a decision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from gradacc_dist.checkpoint.news import News, Status, Told
from gradacc_dist.checkpoint.save import Place, Save
from gradacc_dist.checkpoint.snapshot import Snapshot
from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.checkpoint.store import CHECKPOINTS, Store
from gradacc_dist.config.schema import Checkpoint, Config
from gradacc_dist.data.order import Window
from gradacc_dist.engines import Engine
from gradacc_dist.errors import DiskError, GradaccError, PreemptedError
from gradacc_dist.observe.ledger import LEDGER
from gradacc_dist.signals import Signals
from gradacc_dist.world import World

# A rank that has done its part meets the others this often: sooner than a collective times out.
MEET_SECONDS = 5.0

Describe = Callable[[Window, int], RunState]
"""The run's state after a window and a number of updates; called on rank 0."""


class Saver:
    """Context manager around the loop; leaving it in order, nothing is under way.

    `note` shows a line to people. `failure`: why this rank cannot write what the run leaves beside
    checkpoints; None while it can.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        describe: Describe,
        signals: Signals,
        note: Callable[[str], None],
        failure: Callable[[], DiskError | None],
        world: World,
    ) -> None:
        self.newest: Path | None = None
        """The newest checkpoint that this invocation has completed; the same on every rank."""
        self._policy: Checkpoint = config.checkpoint
        folder = config.run.folder
        self._place = Place(
            Store(folder / CHECKPOINTS),
            folder / LEDGER,
            config.checkpoint.keep,
            config.checkpoint.keep_every_steps,
        )
        self._engine = engine
        self._describe = describe
        self._signals = signals
        self._note = note
        self._failure = failure
        self._world = world
        self._snapshot = Snapshot(world.rank, world.ranks, world.device)
        self._save: Save | None = None
        self._last_begun = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Where all ranks stop at the same point, the save under way can still be completed.
        if isinstance(error, GradaccError) and error.same_on_all_ranks:
            with suppress(DiskError):  # the first cause is what counts
                self._finish()

    def news(self) -> list[float]:
        """What this rank tells the others at the end of a window."""
        status = self._save.status() if self._save is not None else Status.READY
        has_failed = self._failure() is not None
        return News(self._signals.take(), self._is_time(), status, has_failed).row()

    def before_first_step(self) -> None:
        """Leave at once where a rank was asked to, or must. Collective.

        Raises PreemptedError or DiskError.
        """
        told = Told.by(self._world.share_row(self.news()).wait())
        if told.is_failure:
            self._end()
        if told.asked_to_leave:
            raise PreemptedError(
                f"{self._who(told)} before the first step: there is nothing new to save; start "
                "the same command again",
                same_on_all_ranks=True,
            )

    def after_step(self, window: Window, num_updates: int, news: Tensor, *, is_last: bool) -> None:
        """Carry on with the save under way, and begin one if it is due. Collective.

        `news`: (ranks, 4), what every rank told at the end of `window`. A checkpoint of the last
        step, or of one after which the run leaves, is waited for. Raises PreemptedError, and
        DiskError where the policy is to stop or the ledger cannot be written, on every rank.
        """
        told = Told.by(news)
        if told.is_failure:
            self._end()
        if self._save is not None:
            self._advance(self._save, told.statuses)
        if is_last or told.asks_for_save or self._is_due(window.step):
            self._begin(window, num_updates)
        if is_last or told.asked_to_leave:
            self._finish()
        if told.asked_to_leave and not is_last:
            raise PreemptedError(self._farewell(told, window.step), same_on_all_ranks=True)

    def _is_time(self) -> bool:
        minutes = self._policy.every_minutes
        seconds = time.monotonic() - self._last_begun
        return minutes is not None and seconds >= 60 * minutes

    def _is_due(self, step: int) -> bool:
        every = self._policy.every_steps
        return every is not None and step % every == 0

    def _begin(self, window: Window, num_updates: int) -> None:
        """Copy the state, for which training waits, and let it be written. Collective."""
        self._finish()  # one at a time: the memory is that of the one before
        self._last_begun, begun = time.monotonic(), time.perf_counter()
        state = None
        with self._world.main_alone():
            if self._world.is_main:
                self._raise_failure()  # no checkpoint vouches for a ledger that lacks a line
                state = self._describe(window, num_updates)
        self._snapshot.take(self._engine.state())
        self._save = Save(window.step, self._snapshot, state, self._place, self._world)
        self._save.waited_seconds = time.perf_counter() - begun

    def _finish(self) -> None:
        """Wait for the save under way, if there is one. Collective."""
        while self._save is not None:
            begun = time.perf_counter()
            self._save.wait(MEET_SECONDS)
            row = self._world.share_row([float(self._save.status())]).wait()
            statuses = [Status(int(status)) for (status,) in row.tolist()]
            self._save.waited_seconds += time.perf_counter() - begun
            self._advance(self._save, statuses)

    def _advance(self, save: Save, statuses: list[Status]) -> None:
        """Collective. Raises DiskError where the policy is to stop."""
        begun = time.perf_counter()
        try:
            is_over = save.advance(statuses)
        except DiskError as error:
            self._save = None
            if self._policy.on_error == "stop":
                raise
            self._note(f"warning: {error}. Training goes on; the next checkpoint tries again")
            return
        save.waited_seconds += time.perf_counter() - begun
        if is_over:
            self._save = None
            self.newest = save.folder
            if self._world.is_main:
                for line in save.summary():
                    self._note(line)

    def _end(self) -> None:
        """Collective. Raises DiskError on rank 0, and what has its exit code on the others."""
        with self._world.main_alone():
            self._raise_failure()

    def _raise_failure(self) -> None:
        if (failure := self._failure()) is not None:
            raise failure

    def _farewell(self, told: Told, step: int) -> str:
        if self.newest == self._place.store.final(step):
            where = f"saved in {self.newest}; the same command goes on from there"
        elif self.newest is not None:
            where = f"not saved; the same command goes on from {self.newest}"
        else:
            where = "not saved; the same command goes on from an earlier checkpoint, or anew"
        return f"{self._who(told)}: left after step {step}, {where}"

    def _who(self, told: Told) -> str:
        ranks = told.asked_to_leave
        if len(ranks) == self._world.ranks > 1:
            return f"SIGTERM to all {len(ranks)} ranks"
        return f"SIGTERM to {', '.join(map(self._world.describe_rank, ranks))}"
