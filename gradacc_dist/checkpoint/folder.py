"""A run's output folder as the next run finds it: whose it is, and what lies in it.

For rank 0 alone, but for `held`. Raises DiskError where the folder cannot be written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gradacc_dist.checkpoint.disk import remove_folder, sync_folder
from gradacc_dist.checkpoint.lock import Owner, RunLock
from gradacc_dist.checkpoint.manifest import MANIFEST
from gradacc_dist.checkpoint.sameness import same_fields
from gradacc_dist.checkpoint.store import CHECKPOINTS, Store
from gradacc_dist.config.identity import identity
from gradacc_dist.config.load import read_back
from gradacc_dist.config.present import RESOLVED
from gradacc_dist.config.schema import Config
from gradacc_dist.errors import ConfigError, DiskError
from gradacc_dist.observe.ledger import LEDGER, TrainRecord, read
from gradacc_dist.world import World

FIGURE, MODEL = "loss.png", "model"


@contextmanager
def held(folder: Path, world: World) -> Iterator[Owner | None]:
    """Make the output folder and have it alone. Collective.

    Yields, on rank 0, the owner that died without letting go of it, if one did. Raises, on every
    rank, ConfigError where another run has it, and DiskError.
    """
    lock: RunLock | None = None
    with world.main_alone():
        if world.is_main:
            with DiskError.naming(folder):
                folder.mkdir(parents=True, exist_ok=True)
            lock = RunLock(folder)
    try:
        yield lock.died if lock else None
    finally:
        if lock:
            lock.close()


@dataclass(frozen=True)
class RunFolder:
    """What is in the output folder `path`, which this process holds."""

    path: Path

    @property
    def ledger(self) -> Path:
        """The run's ledger."""
        return self.path / LEDGER

    @property
    def store(self) -> Store:
        """The run's checkpoints."""
        return Store(self.path / CHECKPOINTS)

    def has_model_of(self, checkpoint: Path) -> bool:
        """Whether the trained model is there, and not that of a shorter schedule.

        It is written after the last checkpoint.
        """
        model = self.path / MODEL
        return model.exists() and model.stat().st_mtime >= (checkpoint / MANIFEST).stat().st_mtime

    def clear(self) -> list[str]:
        """Remove what an earlier run left, so that one can begin anew; say what."""
        found = [
            name for name in (LEDGER, FIGURE, MODEL, CHECKPOINTS) if (self.path / name).exists()
        ]
        with DiskError.naming(self.path):
            for name in found:
                path = self.path / name
                remove_folder(path) if path.is_dir() else path.unlink()
        names = ", ".join(found)
        return [f"run.overwrite: true: removed {names} of an earlier run"] if found else []

    def refuse_earlier_run(self, config: Config, num_steps: int) -> list[str]:
        """Raise ConfigError where an earlier run is here that may not be replaced.

        One that ended before its first checkpoint begins anew when it is the very same run, since
        a job that is started again must go on by itself: remove its ledger, and say so.
        """
        if not self.ledger.exists() and not self.store.candidates():
            return []
        if config.run.resume == "never" or self.store.candidates() or (self.path / MODEL).exists():
            raise self._earlier_run("")
        if why := self._differs_from(config):
            raise self._earlier_run(f" ({why})")
        num_done = sum(isinstance(record, TrainRecord) for record in read(self.ledger))
        if num_done >= num_steps:
            raise self._earlier_run(f", all {num_done} steps of it, but no checkpoint")
        with DiskError.naming(self.ledger):
            self.ledger.unlink()
        return [f"an earlier try made {num_done:,} step(s) and no checkpoint: it begins anew"]

    def set_aside(self, after_step: int, config: Config) -> list[str]:
        """Where the user chose an older checkpoint, move the newer ones away, with a copy of the
        ledger that led to them.

        They belong to a course that is given up, and the next resume would take them for the
        newest. Nothing of them is deleted.
        """
        newer = [folder for step, folder in self.store.candidates() if step > after_step]
        if not newer or config.run.resume == "auto":
            return []
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        aside = self.store.folder / f"abandoned-after-{after_step:08d}-{now}"
        with DiskError.naming(aside):
            aside.mkdir()
            if self.ledger.exists():
                shutil.copyfile(self.ledger, aside / LEDGER)
            for folder in reversed(newer):
                folder.rename(aside / folder.name)
        sync_folder(self.store.folder)
        return [f"{len(newer)} newer checkpoint(s) are moved to {aside}; delete it at will"]

    def write_resolved(self, text: str) -> None:
        """Leave the configuration as it runs."""
        with DiskError.naming(self.path):
            (self.path / RESOLVED).write_text(text)

    def _differs_from(self, config: Config) -> str:
        try:
            earlier = read_back(self.path / RESOLVED)
        except ConfigError:
            return f"its {RESOLVED} cannot be read"
        same = same_fields(identity(earlier), identity(config))
        return "" if same else "of another configuration"

    def _earlier_run(self, detail: str) -> ConfigError:
        remedy = ""
        if self.store.candidates():
            remedy = "set --run.resume auto to continue it, "
        return ConfigError(
            f"run.output_dir: {self.path} holds an earlier run{detail}; {remedy}choose another "
            "folder, or set --run.overwrite true to replace it"
        )
