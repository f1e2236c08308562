"""Tokenised data: made once, cached by content, memory-mapped by every rank.

The cache folder's name is a hash of everything the tokens depend on: the rows, the tokenizer
with its chat template, what is supervised, the length limit and the version of this code. Whoever
comes first makes it, under a lock, in a temporary folder that is renamed when complete; the others
wait and then only map it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from datasets import Dataset
from filelock import FileLock
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from gradacc_dist.data import tokenizer as tokenizers
from gradacc_dist.data.ending import Ending
from gradacc_dist.data.formats import Encoder
from gradacc_dist.data.order import Ids
from gradacc_dist.data.rows import Place, Row
from gradacc_dist.data.shapes import Shape, Supervise, shaped
from gradacc_dist.data.sources import Source
from gradacc_dist.errors import DataError
from gradacc_dist.items import count_causal_items

# Part of the cache's key: raise it when the same rows would give other tokens or columns.
VERSION = 3
ROWS_PER_BATCH = 1000
ROWS_NAMED = 5
COLUMNS = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "length": pa.int64(),
        "items": pa.int64(),
    }
)


@dataclass(frozen=True)
class Example:
    """One tokenised sample. `input_ids`, `labels`: (length,) int32; labels before any shift.

    `num_lost_tokens`: cut off by max_length as it was read; what was cut when the data was indexed
    is in that index's report.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    num_lost_tokens: int = 0


@dataclass
class Report:
    """What tokenising found, in rows of the source.

    `num_cut_to_no_items`: those of the rows without items that had some before truncation.
    `num_without_end`: rows with items, not truncated, that do not end as `Ending` asks.
    `shapes`: rows of each shape. Lists name the first few rows by their position from 0: the same
    content may be cached under another file name, so no place is kept.
    """

    num_rows: int = 0
    num_truncated: int = 0
    num_truncated_tokens: int = 0
    num_without_items: int = 0
    num_cut_to_no_items: int = 0
    num_without_end: int = 0
    shapes: dict[str, int] = field(default_factory=dict)
    truncated_rows: list[int] = field(default_factory=list)
    rows_without_items: list[int] = field(default_factory=list)
    rows_without_end: list[int] = field(default_factory=list)

    def add(
        self, shape: Shape, num_lost_tokens: int, items: int, items_lost: int, has_end: bool
    ) -> None:
        """Note one row."""
        self.shapes[str(shape)] = self.shapes.get(str(shape), 0) + 1
        if num_lost_tokens:
            self.num_truncated += 1
            self.num_truncated_tokens += num_lost_tokens
            if len(self.truncated_rows) < ROWS_NAMED:
                self.truncated_rows.append(self.num_rows)
        if items == 0:
            self.num_without_items += 1
            self.num_cut_to_no_items += items_lost > 0
            if len(self.rows_without_items) < ROWS_NAMED:
                self.rows_without_items.append(self.num_rows)
        elif not has_end and not num_lost_tokens:
            self.num_without_end += 1
            if len(self.rows_without_end) < ROWS_NAMED:
                self.rows_without_end.append(self.num_rows)
        self.num_rows += 1


class ById(Protocol):
    """Tokenised examples that are found by their ids."""

    def examples(self, ids: Ids) -> list[Example]:
        """The examples of these ids, in this order."""
        ...


class Examples(ById, Protocol):
    """All examples, with ids from 0. `lengths`, `items`: (examples,) int64."""

    sha256: str
    lengths: NDArray[np.int64]
    items: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of examples."""
        ...


class Tokens:
    """The examples of one source, by row number."""

    def __init__(self, folder: Path, sha256: str) -> None:
        self.sha256 = sha256
        self.report = Report(**json.loads((folder / "report.json").read_text()))
        self._dataset = Dataset.from_file(str(folder / "tokens.arrow")).with_format("numpy")
        self.lengths: NDArray[np.int64] = self._dataset.data.column("length").to_numpy()
        self.items: NDArray[np.int64] = self._dataset.data.column("items").to_numpy()

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._dataset)

    def examples(self, ids: Ids) -> list[Example]:
        """The examples with these row numbers, in this order."""
        if len(ids) == 0:
            return []
        rows = self._dataset[ids.tolist()]
        return [Example(*row) for row in zip(rows["input_ids"], rows["labels"], strict=True)]

    def input_ids(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """All examples in their order, a batch at a time, without a copy.

        The batch's tokens: (tokens,), and where its examples begin and the last ends:
        (examples + 1,).
        """
        for chunk in self._dataset.data.column("input_ids").chunks:
            yield chunk.values.to_numpy(), chunk.offsets.to_numpy()


def prepare(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_dir: Path,
    supervise: Supervise = "auto",
    on_rows: Callable[[int], None] | None = None,
) -> Tokens:
    """The tokens of `source`, made if the cache lacks them. Not collective: needs no ranks.

    `on_rows` is told the number of rows made so far, 0 first, by the one process that makes them.
    Raises DataError for rows that cannot be used and for a source without rows.
    """
    parts = [VERSION, source.sha256(), tokenizers.fingerprint(tokenizer), max_length, supervise]
    key = sha256(json.dumps(parts).encode()).hexdigest()
    folder = cache_dir / "tokens" / key[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            making = folder.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            encoder = Encoder(tokenizer, supervise)
            report = _write(making, source, encoder, max_length, on_rows)
            (making / "report.json").write_text(json.dumps(asdict(report)))
            making.rename(folder)
    return Tokens(folder, key)


def _write(
    folder: Path,
    source: Source,
    encoder: Encoder,
    max_length: int,
    on_rows: Callable[[int], None] | None,
) -> Report:
    report = Report()
    ending = Ending(encoder.tokenizer)
    if on_rows is not None:
        on_rows(0)
    rows = shaped(source.rows())
    path = str(folder / "tokens.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, COLUMNS) as writer:
        while batch := list(islice(rows, ROWS_PER_BATCH)):
            examples = list(_encoded(batch, encoder, ending, max_length, report))
            writer.write_batch(pa.RecordBatch.from_pylist(examples, schema=COLUMNS))
            if on_rows is not None:
                on_rows(report.num_rows)
    if report.num_rows == 0:
        raise DataError(f"{source.name}: no rows; name a source that holds at least one")
    return report


def _encoded(
    batch: list[tuple[Place, Row, Shape]],
    encoder: Encoder,
    ending: Ending,
    max_length: int,
    report: Report,
) -> Iterator[dict[str, object]]:
    for (_, _, shape), (input_ids, labels) in zip(batch, encoder.encode(batch), strict=True):
        kept = labels[:max_length]
        items = count_causal_items(kept)
        lost_tokens = len(labels) - len(kept)
        items_lost = count_causal_items(labels) - items if lost_tokens else 0
        report.add(shape, lost_tokens, items, items_lost, ending.is_in(kept))
        yield {
            "input_ids": input_ids[:max_length],
            "labels": kept,
            "length": len(kept),
            "items": items,
        }
