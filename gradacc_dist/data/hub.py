"""Datasets that the `datasets` library keeps: on the Hugging Face hub, or saved by it on disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, IterableDataset
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


@dataclass(frozen=True)
class Remote:
    """One split, read over the network as its rows are asked for."""

    name: str
    dataset: IterableDataset
    sha256: str

    def rows(self) -> Rows:
        """Every row with its place, in the order of the hub's files."""
        batches = self.dataset.with_format("arrow").iter(batch_size=ROWS_PER_BATCH)
        try:
            yield from table_rows(batches, self.name)
        except (OSError, ValueError, DatasetsError) as error:
            raise DataError(
                f"{self.name}: the Hugging Face hub stopped to deliver "
                f"({' '.join(str(error).split())[:300]}); start again, or download it first: "
                "data.streaming: false"
            ) from error


def is_name(name: str) -> bool:
    """Whether the hub could have a dataset of this name; asks nobody."""
    return NAME.fullmatch(name) is not None


def load(name: str, default_split: str) -> Table:
    """Download a split, or take it from the cache of `datasets`.

    Raises DataError, in one line, whatever keeps it from being loaded.
    """
    path, subset, split = _asked(name, default_split)
    with _delivered(name, split):
        dataset = datasets.load_dataset(path, subset, split=split)
    assert isinstance(dataset, Dataset), "a split is one dataset"
    # The fingerprint that `datasets` itself caches by; it follows the files' revision.
    return Table(name, dataset, sha256(dataset._fingerprint.encode()).hexdigest())


def stream(name: str, default_split: str) -> Remote:
    """Open a split to be read as it is delivered; downloads no data. Raises like `load`."""
    path, subset, split = _asked(name, default_split)
    with _delivered(name, split):
        builder = datasets.load_dataset_builder(path, subset)
        dataset = builder.as_streaming_dataset(split=split)
    # The builder's hash is the commit of the repository.
    identity = f"{path} {subset} {split} {builder.hash}"
    return Remote(name, dataset, sha256(identity.encode()).hexdigest())


def _asked(name: str, default_split: str) -> tuple[str, str | None, str]:
    """Path, subset and split of a name."""
    match = NAME.fullmatch(name)
    assert match is not None, "is_name says whether this can be asked"
    return match["path"], match["subset"], match["split"] or default_split


@contextmanager
def _delivered(name: str, split: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"{name}: no file or folder of this name here (seen from {Path.cwd()}), and the "
            f"Hugging Face hub delivers no split {split!r} of such a dataset "
            f"({' '.join(str(error).split())[:300]}); {HOW}"
        ) from error


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def load_saved(
    folder: Path, name: str, split: str | None, default_split: str, *, whole: bool = True
) -> Table:
    """What `save_to_disk` wrote: a dataset, or one split of several. `whole`: as in `digests`."""
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
        return Table(name, saved[chosen], _content_sha256(folder / chosen, whole))
    if split is not None:
        raise DataError(f"{name}: holds one dataset without splits; write {folder}")
    return Table(name, saved, _content_sha256(folder, whole))


def _content_sha256(folder: Path, whole: bool) -> str:
    """Over the files, not the fingerprint in state.json: that one may be older than they are."""
    digest = sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            digest.update(path.name.encode())
            for block in DataFile(path, str(path)).digests(whole=whole):
                digest.update(block)
    return digest.hexdigest()
