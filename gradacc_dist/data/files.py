"""Local files of rows: JSON, Parquet, Arrow and plain text, one reader each.

A reader yields rows as it goes, so that the first broken one is named with its number and memory
does not grow with the file. What a file means depends on its ending and its bytes, not its name.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from gradacc_dist.data.rows import Place, Row, Rows
from gradacc_dist.errors import DataError

ROWS_PER_BATCH = 1000
BLOCK_BYTES = 1 << 20
GZIP = ".gz"
EACH_LINE = "each line must be one JSON object"
# An Arrow file begins with it; a stream has no mark of its own.
ARROW_FILE_MARK = b"ARROW1"


@dataclass(frozen=True)
class DataFile:
    """One file of a known kind. `shown`: its path as the user would write it, for messages."""

    path: Path
    shown: str

    @property
    def kind(self) -> str:
        """The ending that says how to read it, or the one that nothing can read."""
        inner = self.path.with_suffix("").suffix
        ending = self.path.suffix.lower()
        return inner.lower() if ending == GZIP and inner.lower() in GZIPPED_KINDS else ending

    @property
    def is_known(self) -> bool:
        """Whether rows can be read from a file of this kind."""
        return self.kind in READERS

    def digests(self, *, whole: bool = True) -> Iterator[bytes]:
        """What stands for the rows, in blocks: the kind, the size and the bytes as stored.

        With `whole` false only the first block of them, for files too large to read twice.
        """
        with self._readable():
            yield f"{self.kind} {self.path.stat().st_size}\n".encode()
            with self.path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block
                    if not whole:
                        return

    def rows(self) -> Rows:
        """Every row with its place. Raises DataError naming the row, or the file."""
        if not self.is_known:
            raise DataError(
                f"{self.shown}: {'no ending' if not self.kind else self.kind} is no kind of file "
                f"that can be read; legal endings: {', '.join(READERS)} "
                f"(and {GZIP} after {', '.join(sorted(GZIPPED_KINDS))})"
            )
        with self._readable():
            yield from READERS[self.kind](self)

    def open(self) -> BinaryIO:
        """The bytes, unpacked where the file is packed."""
        if self.path.suffix.lower() == GZIP:
            return cast(BinaryIO, gzip.open(self.path))  # a GzipFile, which has all of it
        return self.path.open("rb")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise DataError(
                f"{self.shown}: cannot be read ({reason}); needs the path of a whole "
                f"{self.kind or 'data'} file (seen from {Path.cwd()})"
            ) from error


def _json_rows(file: DataFile) -> Rows:
    """One object a line; or, in a .json file, one array of objects, numbered from 1."""
    with file.open() as stream:
        if file.kind == ".json" and _first_character(stream) == b"[":
            yield from _json_array(stream.read(), file)
            return
        for number, line in enumerate(stream, start=1):
            if line.strip():
                place = Place(file.shown, number)
                yield place, _object(_parsed(line, place, EACH_LINE), place)


def _json_array(text: bytes, file: DataFile) -> Rows:
    whole = _parsed(text, file.shown, "a .json file is one object a line, or one array of objects")
    for number, row in enumerate(whole, start=1):
        place = Place(file.shown, number)
        yield place, _object(row, place)


def _first_character(stream: BinaryIO) -> bytes:
    """The first byte that is not blank; the stream is at its beginning again."""
    head = stream.read(BLOCK_BYTES)
    stream.seek(0)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _parsed(text: bytes, place: Place | str, rule: str) -> Any:
    try:
        return json.loads(text.rstrip())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        shown = error.doc.split("\n")[error.lineno - 1][:80].strip()
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        problem = f"{error.msg.removesuffix(' at')} at {line}column {error.colno}"
        raise DataError(f"{place}: not JSON ({problem}): {shown!r}; {rule}") from error
    except RecursionError as error:
        raise DataError(f"{place}: nested too deeply to be read; {rule}") from error


def _object(value: Any, place: Place) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: a {type(value).__name__}, but each row must be one JSON object such as "
            '{"text": "..."} or {"prompt": "...", "completion": "..."}'
        )
    return value


def _text_rows(file: DataFile) -> Rows:
    """`{"text": line}` for each line that is not blank."""
    with file.open() as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = Place(file.shown, number)
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{place}: not UTF-8 text ({error.reason} at byte {error.start}); "
                    "save it as UTF-8"
                ) from error
            yield place, {"text": text.rstrip("\r\n")}


def _parquet_rows(file: DataFile) -> Rows:
    with pa.parquet.ParquetFile(file.path) as parquet:
        yield from table_rows(parquet.iter_batches(ROWS_PER_BATCH), file.shown)


def _arrow_rows(file: DataFile) -> Rows:
    """An Arrow IPC file or stream, whichever the bytes say."""
    with pa.memory_map(str(file.path)) as mapped:
        is_file = mapped.read(len(ARROW_FILE_MARK)) == ARROW_FILE_MARK
        mapped.seek(0)
        if is_file:
            reader = pa.ipc.open_file(mapped)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(mapped))
        yield from table_rows(batches, file.shown)


def table_rows(batches: Iterable[Any], shown: str) -> Rows:
    """The rows of Arrow record batches or tables, as Python values."""
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_PER_BATCH):
            part = batch.slice(start, ROWS_PER_BATCH)
            try:
                rows = part.to_pylist()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{Place(shown, number + 1)}, or one of the {part.num_rows - 1} after it: "
                    f"not UTF-8 text ({error.reason}); save it as UTF-8"
                ) from error
            for row in rows:
                number += 1
                yield Place(shown, number), row


READERS: Mapping[str, Callable[[DataFile], Rows]] = MappingProxyType(
    {
        ".jsonl": _json_rows,
        ".json": _json_rows,
        ".parquet": _parquet_rows,
        ".arrow": _arrow_rows,
        ".txt": _text_rows,
    }
)
GZIPPED_KINDS = frozenset({".jsonl", ".json", ".txt"})
