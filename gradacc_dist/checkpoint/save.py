"""One checkpoint on its way to the disk, in the background, over all ranks.

    prepare   rank 0 makes the folder, if there is room
    write     every rank writes and hashes its shards
    commit    rank 0 completes and verifies it, and deletes old ones

A stage begins on all ranks at once, at the end of a window, when none is busy in the one before.
Threads do the work of a stage; what ranks say to each other, the main thread says.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from gradacc_dist.checkpoint.disk import require_space, sync_file
from gradacc_dist.checkpoint.manifest import FileEntry, Manifest
from gradacc_dist.checkpoint.news import Status
from gradacc_dist.checkpoint.shards import write_shard
from gradacc_dist.checkpoint.snapshot import Snapshot
from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.checkpoint.store import Store
from gradacc_dist.checkpoint.verify import verify
from gradacc_dist.errors import CheckpointError, DiskError, GradaccError
from gradacc_dist.world import World

# More than what is measured: headers, manifest, state.json.
EXTRA_BYTES = 1 << 20

Result = TypeVar("Result")
_ENTRIES = TypeAdapter(tuple[FileEntry, ...])


@dataclass(frozen=True)
class Place:
    """Where checkpoints go, how many are kept, and the ledger whose lines they vouch for."""

    store: Store
    ledger: Path
    keep: int
    keep_every_steps: int | None


@dataclass(frozen=True)
class Written:
    """What rank 0 knows of a complete checkpoint. `warning`: of old ones that could not go."""

    folder: Path
    num_bytes: int
    ended: float
    warning: str


class _Stage(Enum):
    PREPARE = auto()
    WRITE = auto()
    COMMIT = auto()


class Save:
    """A save of `snapshot`, which must stay as it is until this is over.

    `state` is read on rank 0. All ranks make the same calls in the same order.
    """

    def __init__(
        self, step: int, snapshot: Snapshot, state: RunState | None, place: Place, world: World
    ) -> None:
        self.step = step
        self.waited_seconds = 0.0
        """For how long training has stood still for it, on this rank."""
        self._snapshot = snapshot
        self._state = state
        self._place = place
        self._world = world
        self._started = time.perf_counter()
        self._stage = _Stage.PREPARE
        self._job: Future[tuple[FileEntry, ...]] | None = None
        self._commit: Future[Written] | None = None
        if world.is_main:
            self._job = in_background(self._prepare)

    def status(self) -> Status:
        """What this rank does for the save. Not collective. Raises what is nobody's mistake."""
        work = self._work
        if work is None:
            return Status.READY
        if not work.done():
            return Status.BUSY
        error = work.exception()
        if error is not None and not isinstance(error, GradaccError):
            raise error
        return Status.READY if error is None else Status.FAILED

    def wait(self, seconds: float) -> None:
        """Wait for this rank's work, for so long at most. Not collective."""
        if self._work is not None:
            with suppress(TimeoutError):
                self._work.exception(timeout=seconds)

    def advance(self, statuses: Sequence[Status]) -> bool:
        """Go on to the next stage when no rank is busy; True at the end. Collective.

        `statuses` by rank, the same on all. Raises DiskError, on every rank, with the words of
        those that failed.
        """
        if Status.BUSY in statuses:
            return False
        if Status.FAILED in statuses:
            self._fail()
        if self._stage is _Stage.PREPARE:
            self._stage = _Stage.WRITE
            self._job = in_background(self._write)
        elif self._stage is _Stage.WRITE:
            self._stage = _Stage.COMMIT
            shards = self._shards_of_all()
            self._job = None
            if self._world.is_main:
                self._commit = in_background(partial(self._complete, shards))
        else:
            return True
        return False

    @property
    def folder(self) -> Path:
        """Of the checkpoint, once it is complete."""
        return self._place.store.final(self.step)

    def summary(self) -> list[str]:
        """What to tell people of it, on rank 0, after the end."""
        assert self._commit is not None, "only rank 0 knows"
        written = self._commit.result()
        lines = [
            f"checkpoint at step {self.step}: {show_bytes(written.num_bytes)} in "
            f"{written.ended - self._started:.1f} s (training waited {self.waited_seconds:.2f} s)"
        ]
        if written.warning:
            lines.append(f"warning: old checkpoints could not be deleted: {written.warning}")
        return lines

    @property
    def _work(self) -> Future[tuple[FileEntry, ...]] | Future[Written] | None:
        return self._commit or self._job

    def _prepare(self) -> tuple[FileEntry, ...]:
        store = self._place.store
        store.begin(self.step)  # first, because it removes what failed saves have left
        require_space(store.folder, self._snapshot.global_bytes + EXTRA_BYTES)
        return ()

    def _write(self) -> tuple[FileEntry, ...]:
        saving = self._place.store.saving(self.step)
        return tuple(
            write_shard(saving / name, tensors) for name, tensors in self._snapshot.files()
        )

    def _shards_of_all(self) -> list[FileEntry]:
        """Collective."""
        assert self._job is not None, "every rank writes"
        told = self._world.share_text(_ENTRIES.dump_json(self._job.result()).decode())
        return [entry for text in told for entry in _ENTRIES.validate_json(text)]

    def _complete(self, shards: Sequence[FileEntry]) -> Written:
        place = self._place
        assert self._state is not None, "rank 0 has the state"
        sync_file(place.ledger)
        folder = place.store.commit(self.step, shards, self._state.model_dump(mode="json"))
        # Read back: only a checkpoint that verifies may cost an older one its place.
        manifest = verify(folder)

        def check(other: Path) -> Manifest:
            return manifest if other == folder else verify(other)

        warning = ""
        try:
            place.store.prune(place.keep, place.keep_every_steps, check)
        except (DiskError, CheckpointError) as error:
            warning = str(error)
        num_bytes = sum(entry.num_bytes for entry in manifest.files)
        return Written(folder, num_bytes, time.perf_counter(), warning)

    def _fail(self) -> None:
        """Collective."""
        error = self._work.exception() if self._work is not None else None
        told = self._world.share_text(str(error) if error else "")
        if self._world.is_main:
            with suppress(DiskError, CheckpointError):  # the next save tries again
                self._place.store.clear()
        whys = [
            f"{self._world.describe_rank(rank)}: {text}" for rank, text in enumerate(told) if text
        ]
        raise DiskError(
            f"checkpoint at step {self.step} was not saved: {'; '.join(whys)}",
            same_on_all_ranks=True,
        )


def show_bytes(num_bytes: int) -> str:
    """As people read it, in decimal units as disks have them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """Do `work` in a thread, which does not keep the process alive."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - carried over to the main thread
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future
