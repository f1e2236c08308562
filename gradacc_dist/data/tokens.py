"""Tokenised data: made once, cached by content, memory-mapped by every rank.

The cache folder's name is a hash of everything the tokens depend on: the rows, the tokenizer, the
length limit and the version of this code. Whoever comes first makes it, under a lock, in a
temporary folder that is renamed when complete; the others wait and then only map it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from filelock import FileLock
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from gradacc_dist.data import tokenizer as tokenizers
from gradacc_dist.data.formats import Encoder, segments
from gradacc_dist.data.order import Ids
from gradacc_dist.data.sources import Row, Source
from gradacc_dist.errors import DataError
from gradacc_dist.items import count_causal_items

# Part of the cache's key: raise it when the same rows would give other tokens or columns.
VERSION = 1
ROWS_PER_BATCH = 1000
PLACES_NAMED = 5
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
    """One tokenised sample. `input_ids`, `labels`: (length,) int32; labels before any shift."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]


@dataclass
class Report:
    """What tokenising found. `places` name the first few rows of each kind."""

    num_rows: int = 0
    num_truncated: int = 0
    num_truncated_tokens: int = 0
    num_without_items: int = 0
    truncated_places: list[str] = field(default_factory=list)
    places_without_items: list[str] = field(default_factory=list)


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


def prepare(
    source: Source, tokenizer: PreTrainedTokenizerBase, max_length: int, cache_dir: Path
) -> Tokens:
    """The tokens of `source`, made if the cache lacks them. Not collective: needs no ranks.

    Raises DataError for rows that cannot be used and for a source without rows.
    """
    parts = [VERSION, source.sha256(), tokenizers.fingerprint(tokenizer), max_length]
    key = sha256(json.dumps(parts).encode()).hexdigest()
    folder = cache_dir / "tokens" / key[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            making = folder.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            report = _write(making, source, Encoder(tokenizer), max_length)
            (making / "report.json").write_text(json.dumps(asdict(report)))
            making.rename(folder)
    return Tokens(folder, key)


def _write(folder: Path, source: Source, encoder: Encoder, max_length: int) -> Report:
    report = Report()
    rows = source.rows()
    path = str(folder / "tokens.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, COLUMNS) as writer:
        while batch := list(islice(rows, ROWS_PER_BATCH)):
            examples = list(_encoded(batch, encoder, max_length, report))
            writer.write_batch(pa.RecordBatch.from_pylist(examples, schema=COLUMNS))
    if report.num_rows == 0:
        raise DataError(f"{source.name}: no rows; a run needs at least one example")
    return report


def _encoded(
    batch: list[tuple[str, Row]], encoder: Encoder, max_length: int, report: Report
) -> Iterator[dict[str, object]]:
    places = [place for place, _ in batch]
    encoded = encoder.encode([segments(row, place) for place, row in batch])
    for place, (input_ids, labels) in zip(places, encoded, strict=True):
        report.num_rows += 1
        if len(input_ids) > max_length:
            report.num_truncated += 1
            report.num_truncated_tokens += len(input_ids) - max_length
            report.truncated_places += [place] * (len(report.truncated_places) < PLACES_NAMED)
            input_ids, labels = input_ids[:max_length], labels[:max_length]
        items = count_causal_items(labels)
        if items == 0:
            report.num_without_items += 1
            named = report.places_without_items
            named += [place] * (len(named) < PLACES_NAMED)
        yield {
            "input_ids": input_ids,
            "labels": labels,
            "length": len(input_ids),
            "items": items,
        }
