"""Datasets that the `datasets` library keeps: on the Hugging Face hub, or saved by it on disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetsError

from gradacc_dist.data.files import ROWS_PER_BATCH, DataFile, table_rows
from gradacc_dist.data.rows import Rows
from gradacc_dist.errors import DataError

# org/name or name; a third part chooses one of a dataset's subsets, after the colon is the split.
NAME = re.compile(
    r"(?P<path>\w[\w.-]*(/[\w.-]+)?)(/(?P<subset>[\w.-]+))?(:(?P<split>[\w.:%+\[\]-]+))?"
)
HOW = "write a hub dataset as org/name:split, or org/name/subset:split where it has subsets"


@dataclass(frozen=True)
class Table:
    """One split, loaded. `sha256` stands for its rows."""

    name: str
    dataset: Dataset
    sha256: str

    def rows(self) -> Rows:
        """Every row with its place; images and audio stay as stored bytes."""
        batches = self.dataset.with_format("arrow").iter(batch_size=ROWS_PER_BATCH)
        return table_rows(batches, self.name)


def is_name(name: str) -> bool:
    """Whether the hub could have a dataset of this name; asks nobody."""
    return NAME.fullmatch(name) is not None


def load(name: str, default_split: str) -> Table:
    """Download a split, or take it from the cache of `datasets`.

    Raises DataError, in one line, whatever keeps it from being loaded.
    """
    match = NAME.fullmatch(name)
    assert match is not None, "is_name says whether this can be asked"
    split = match["split"] or default_split
    try:
        dataset = datasets.load_dataset(match["path"], match["subset"], split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"{name}: no file or folder of this name here (seen from {Path.cwd()}), and the "
            f"Hugging Face hub delivers no split {split!r} of such a dataset "
            f"({' '.join(str(error).split())[:300]}); {HOW}"
        ) from error
    assert isinstance(dataset, Dataset), "a split is one dataset"
    # The fingerprint that `datasets` itself caches by; it follows the files' revision.
    return Table(name, dataset, sha256(dataset._fingerprint.encode()).hexdigest())


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def load_saved(folder: Path, name: str, split: str | None, default_split: str) -> Table:
    """What `save_to_disk` wrote: a dataset, or one split of several."""
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise DataError(
            f"{name}: was written by save_to_disk but cannot be loaded "
            f"({' '.join(str(error).split())[:300]}); save it again"
        ) from error
    if isinstance(saved, DatasetDict):
        chosen = split or default_split
        if chosen not in saved:
            raise DataError(
                f"{name}: has no split {chosen!r}; write one of "
                f"{', '.join(f'{folder}:{other}' for other in saved)}"
            )
        return Table(name, saved[chosen], _content_sha256(folder / chosen))
    if split is not None:
        raise DataError(f"{name}: holds one dataset without splits; write {folder}")
    return Table(name, saved, _content_sha256(folder))


def _content_sha256(folder: Path) -> str:
    """Over the files, not the fingerprint in state.json: that one may be older than they are."""
    digest = sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(path.name.encode())
            for block in _blocks(path):
                digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    return DataFile(path, str(path)).digests()
