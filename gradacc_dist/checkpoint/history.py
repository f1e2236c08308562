"""The ledger as it was at a checkpoint: what came after belongs to windows trained once more.

The lines of a ledger are not forced to the disk one by one, so after a power cut it may be shorter
than a checkpoint says. That loses what was told of the run, and nothing of the run itself: it goes
on, and says so. A ledger that tells of another run is refused. For rank 0 alone.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.data.order import Order
from gradacc_dist.errors import CheckpointError, DataError, DiskError
from gradacc_dist.observe.ledger import EvalRecord, Record, TrainRecord, read


@dataclass(frozen=True)
class History:
    """The lines of the ledger `path` up to the checkpoint of `state`.

    `order`: the run's own, whose windows the lines must name; None where it cannot tell: of a
    stream, or when data, window or seed were changed.
    """

    path: Path
    state: RunState
    order: Order | None

    def check(self) -> None:
        """Raise CheckpointError where the lines are not those of this run, DataError if damaged."""
        train = [record for record in self._records() if isinstance(record, TrainRecord)]
        if not train or self._num_lost_bytes() > 0:
            return
        last = train[-1]
        for name in ("step", "examples_seen", "epoch"):
            found, expected = getattr(last, name), getattr(self.state, name)
            if found != expected:
                raise self._foreign(f"the last step up to there has {name} {found}, not {expected}")
        if self.order is not None:
            begin = last.examples_seen - last.num_examples
            window = self.order.window_after(begin, last.step)
            if window.ids_sha256 != last.example_ids_sha256:
                raise self._foreign(
                    f"step {last.step} was trained on the examples {last.example_ids_sha256:.12}, "
                    f"and this run's are {window.ids_sha256:.12}"
                )

    def is_evaluated(self) -> bool:
        """Whether the held-out loss at the checkpoint's step is among the lines."""
        step = self.state.step
        return any(isinstance(r, EvalRecord) and r.step == step for r in self._records())

    def cut(self) -> list[str]:
        """Remove the lines after the checkpoint; say so. Raises DiskError."""
        if self._num_lost_bytes() > 0:
            return [self._loss()]
        if not self.path.exists():
            return []
        end = self._end()
        with DiskError.naming(self.path), self.path.open("r+b") as file:
            file.seek(end)
            num_lines = len(file.read().splitlines())
            if num_lines:
                file.truncate(end)
                os.fsync(file.fileno())
        again = "their windows are trained again"
        told = f"{self.path.name}: {num_lines:,} line(s) after step {self.state.step} are cut off"
        return [f"{told}: {again}"] if num_lines else []

    def copy_to(self, path: Path) -> list[str]:
        """Begin the ledger `path` with these lines; say so. Raises DiskError."""
        if not self.path.exists():
            return [f"{path.name} begins after step {self.state.step}: there is no {self.path}"]
        with DiskError.naming(path):
            path.write_bytes(self.path.read_bytes()[: self._end()])
        told = [f"{path.name} begins with the lines of {self.path}"]
        return told + ([self._loss()] if self._num_lost_bytes() > 0 else [])

    def _records(self) -> list[Record]:
        if not self.path.exists():
            return []
        try:
            return list(read(self.path, self._end()))
        except DataError as error:
            raise CheckpointError(f"{error}, or move the file away to begin another") from error

    def _end(self) -> int:
        """Where the lines end that stay: an evaluation right after the checkpoint is of it too."""
        end = self.state.ledger_bytes
        with self.path.open("rb") as file:
            file.seek(end)
            for line in file:
                if not _is_evaluation(line, self.state.step):
                    break
                end += len(line)
        return end

    def _num_lost_bytes(self) -> int:
        size = self.path.stat().st_size if self.path.exists() else 0
        return self.state.ledger_bytes - size

    def _loss(self) -> str:
        return (
            f"{self.path.name} lacks the last {self._num_lost_bytes():,} of the "
            f"{self.state.ledger_bytes:,} bytes that it had at step {self.state.step}: what they "
            "told is lost; the training is not affected"
        )

    def _foreign(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: is not the ledger of the checkpoint at step {self.state.step}: {why}; "
            "move it away to begin another, or restore the right one"
        )


def _is_evaluation(line: bytes, step: int) -> bool:
    try:
        record = json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return False
    return record.get("kind") == "eval" and record.get("step") == step
