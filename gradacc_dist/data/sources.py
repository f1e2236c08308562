"""Where rows come from, by name: embedded, files, folders, saved datasets, the hub."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from gradacc_dist.data import corpus, hub
from gradacc_dist.data.files import READERS, DataFile
from gradacc_dist.data.rows import Place, Rows
from gradacc_dist.errors import DataError

EMBEDDED = "embedded"
Role = Literal["train", "evaluate"]
HUB_SPLITS: Mapping[Role, str] = MappingProxyType({"train": "train", "evaluate": "validation"})


class Origin(Protocol):
    """Rows in an order that does not change."""

    @property
    def sha256(self) -> str:
        """Stands for the rows: changes whenever they do."""
        ...

    def rows(self) -> Rows:
        """Each row with the place it stands at."""
        ...


@dataclass(frozen=True)
class Embedded:
    """One split of the embedded corpus; its pairs and its texts read like a file each."""

    role: Role

    @property
    def sha256(self) -> str:
        """Follows the Python build that the corpus is made of."""
        return sha256(f"{corpus.fingerprint()} {self.role}".encode()).hexdigest()

    def rows(self) -> Rows:
        """Pairs, then texts."""
        for number, row in enumerate(corpus.rows(self.role), start=1):
            yield Place(f"embedded {self.role} {'text' if 'text' in row else 'pairs'}", number), row


@dataclass(frozen=True)
class Files:
    """Files, one after the other. `left_out`: names of others that were beside them."""

    files: tuple[DataFile, ...]
    left_out: tuple[str, ...] = ()
    streaming: bool = False

    @property
    def sha256(self) -> str:
        """Over kinds and bytes, in order; the files' names do not matter.

        Of a stream: over kinds, sizes and first blocks.
        """
        digest = sha256()
        for file in self.files:
            for block in file.digests(whole=not self.streaming):
                digest.update(block)
        return digest.hexdigest()

    def rows(self) -> Rows:
        """The rows of each file."""
        for file in self.files:
            yield from file.rows()


@dataclass(frozen=True)
class Source:
    """Rows to read, by `name`:

    - `embedded`: the embedded corpus;
    - the path of a file: .jsonl or .json (an object a line; .json also an array of objects),
      .parquet, .arrow, .txt (each line that is not blank is a row `{"text": line}`);
    - the path of a folder: its files of these kinds, recursively, in sorted order, hidden ones
      left out; or what `save_to_disk` of `datasets` wrote there, with `:split` if it has splits;
    - otherwise a dataset of the Hugging Face hub: `org/name:split` or `org/name/subset:split`.

    `role` chooses the split where the name does not. With `streaming` nothing is read or downloaded
    but what is asked for. Raises DataError, from each of its methods, for what is not there or
    cannot be read.
    """

    name: str
    role: Role
    streaming: bool = False

    def sha256(self) -> str:
        """Stands for the rows: changes whenever they do."""
        return self._origin.sha256

    def rows(self) -> Rows:
        """Each row with the place it stands at."""
        return self._origin.rows()

    def places(self, indexes: Collection[int]) -> list[Place]:
        """The places of the rows that come `indexes`-th (from 0); reads up to the last of them."""
        last = max(indexes, default=-1)
        read = enumerate(islice(self.rows(), last + 1))
        return [place for index, (place, _) in read if index in indexes]

    def left_out(self) -> tuple[str, ...]:
        """Files of a folder that are not read, because their kind is not known."""
        return self._origin.left_out if isinstance(self._origin, Files) else ()

    @cached_property
    def _origin(self) -> Origin:
        if self.name == EMBEDDED:
            return Embedded(self.role)
        path = Path(self.name).expanduser()
        if path.is_dir():
            return self._folder(path, None)
        folder, _, split = self.name.rpartition(":")
        if folder and not path.exists() and Path(folder).expanduser().is_dir():
            return self._folder(Path(folder).expanduser(), split)
        file = DataFile(path, self.name)
        if path.exists() or file.is_known or not hub.is_name(self.name):
            return Files((file,), streaming=self.streaming)
        load = hub.stream if self.streaming else hub.load
        return load(self.name, HUB_SPLITS[self.role])

    def _folder(self, folder: Path, split: str | None) -> Origin:
        if hub.is_saved(folder):
            default = HUB_SPLITS[self.role]
            return hub.load_saved(folder, self.name, split, default, whole=not self.streaming)
        if split is not None:
            raise DataError(
                f"{self.name}: is a folder of files, which has no splits; write {folder}"
            )
        inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        paths = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
        shown = self.name.rstrip("/")
        files = [DataFile(folder / path, f"{shown}/{path.as_posix()}") for path in paths]
        known = tuple(file for file in files if file.is_known)
        if not known:
            raise DataError(
                f"{self.name}: this folder holds no file to read ({len(files)} of other kinds); "
                f"legal endings: {', '.join(READERS)}"
            )
        left_out = tuple(file.shown for file in files if not file.is_known)
        return Files(known, left_out, self.streaming)
