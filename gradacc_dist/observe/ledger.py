"""The ledger: one JSON line per optimizer step and per evaluation, of what was counted.

Imports no torch: the launcher and the reports read ledgers too.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError

from gradacc_dist.errors import DataError, DiskError

LEDGER = "ledger.jsonl"
"""Its name in a run's output folder."""


@dataclass(frozen=True)
class Term:
    """One loss term over a window or an evaluation, summed over all ranks."""

    sum: float
    """Sum of the per-item losses, in nats."""
    count: float
    """Number of items in `sum` (their total weight, if items are weighted)."""
    value: float
    """sum / count; NaN where the count is zero."""

    @classmethod
    def over(cls, total: float, count: float) -> Self:
        """The term whose value is the ratio of the two."""
        return cls(total, count, total / count if count else math.nan)


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """One optimizer step. Every figure is global: over the whole window and all ranks."""

    kind: Literal["train"] = "train"
    step: int
    """Optimizer step, from 1: the number of windows consumed so far, skipped ones included."""
    epoch: int
    """Pass over the data that this window belongs to, from 0; a window never spans two."""
    examples_seen: int
    """Examples consumed since the start of the run, this window included."""
    num_examples: int
    """Examples in this window."""
    example_ids_sha256: str
    """Hex digest of the window's example ids in their order: equal on any layout."""
    loss: float
    """What was minimised: nats per item, by the formula that `denominator` names."""
    terms: Mapping[str, Term]
    """Loss terms by name: always true sums and counts, whatever `denominator` is."""
    supervised_tokens: int
    """Items of the loss: labels that are not -100, after the causal shift."""
    input_tokens: int
    """Real (non-padding) tokens of the window."""
    padded_tokens: int
    """Positions computed, padding and filler micro-batches included."""
    micro_batches: int
    """Real micro-batches, filler not counted."""
    ranks: int
    """Data-parallel ranks."""
    engine: str
    """Engine in force: `single`, `ddp`, ..."""
    denominator: str
    """`window` (the law) or `micro_batch_mean` (the historical bug, for comparison)."""
    reduction_factor: float
    """What undid the engine's own averaging: the ranks for a mean, 1 for a sum."""
    grad_norm: float | None
    """Global L2 norm of the gradients before clipping; None when no backward was run."""
    learning_rate: float
    """Learning rate that this step used, or would have used had it not been skipped."""
    seconds: float
    """Wall-clock seconds of the step."""
    tokens_per_second: float
    """input_tokens / seconds."""
    skipped: str | None
    """Why the optimizer did not step (`zero_items`, `non_finite`, or `loss_scale`, when gradients
    overflowed float16 and the next window is tried at a lower scale); None when it did."""
    loss_scale: float | None = None
    """The factor on the loss under float16; None in other formats."""
    truncated_examples: int = 0
    """Examples of this window cut to data.max_length as they were streamed; indexed data is cut,
    and counted, before the run."""
    truncated_tokens: int = 0
    """Tokens that these lost."""


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One evaluation over held-out examples: global sums over global counts."""

    kind: Literal["eval"] = "eval"
    step: int
    """Optimizer steps taken before it."""
    loss: float
    """Nats per item; NaN when nothing is supervised."""
    terms: Mapping[str, Term]
    """Loss terms by name."""
    denominator: str
    """How the run is trained, as in its train records; an evaluation is always sum over count."""
    num_examples: int
    """Held-out examples evaluated."""
    supervised_tokens: int
    """Items of the loss."""
    seconds: float
    """Wall-clock seconds of the evaluation."""


Record = TrainRecord | EvalRecord

# Ignores fields it does not know, so that older code reads newer ledgers.
_PARSER: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def comparison_label(denominator: str) -> str | None:
    """Text that every output of a run with the wrong `denominator` carries; None for the law."""
    if denominator == "micro_batch_mean":
        return "micro_batch_mean: the historical bug, for comparison"
    return None


def show_loss(loss: float) -> str:
    """A loss as people read it, in every output alike: three decimals, NaN as NaN."""
    return "NaN" if math.isnan(loss) else f"{loss:.3f}"


class Ledger:
    """Append-only writer of a ledger; rank 0 only, one writer per file. No fsync per line.

    Each record is one write to a file opened for appending. A kill can still cut that write short,
    as a crash of the machine can: the last line is then torn. Readers leave such a line out, and
    opening cuts it off. Raises DiskError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with DiskError.naming(path):
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            _cut_torn_line(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        with DiskError.naming(self._path):
            os.close(self._file)

    def write(self, record: Record) -> None:
        """Append one line; on a full disk the ledger keeps its earlier lines and no part of it."""
        line = memoryview(json.dumps(asdict(record)).encode() + b"\n")
        with DiskError.naming(self._path):
            size = os.fstat(self._file).st_size
            try:
                while line:  # a second round only where the kernel wrote a part (disk nearly full)
                    line = line[os.write(self._file, line) :]
            except OSError:
                os.ftruncate(self._file, size)
                raise


def read(path: Path, num_bytes: float = math.inf) -> Iterator[Record]:
    """Yield the records in file order; a last line without its newline is being written or torn.

    Only lines that begin within the first `num_bytes`. Raises DataError for any other line that
    is not a record.
    """
    begin = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n") and begin < num_bytes:
                    yield _parse(line, path, number)
                begin += len(line)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or error}; give the ledger.jsonl of a run"
        ) from error


class Tail:
    """Reads a ledger that another process is writing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_bytes = 0
        self._num_lines = 0

    def new_records(self) -> Iterator[Record]:
        """Yield what was written since the last call. Raises DataError as `read` does, OSError."""
        with self._path.open("rb") as lines:
            lines.seek(self._num_bytes)
            for line in lines:
                if not line.endswith(b"\n"):  # not yet whole
                    break
                self._num_bytes += len(line)
                self._num_lines += 1
                yield _parse(line, self._path, self._num_lines)


def _parse(line: bytes, path: Path, number: int) -> Record:
    try:
        return _PARSER.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{path}, line {number}: not a ledger record: {field + ': ' if field else ''}"
            f"{first['msg']}; the file was edited or damaged: restore it or delete that line"
        ) from error


def _cut_torn_line(file: int) -> None:
    size = os.fstat(file).st_size
    if size:  # an empty file cannot be mapped
        with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as content:
            end = content.rfind(b"\n") + 1
        if end < size:
            os.ftruncate(file, end)
