"""Write the same rows in each kind of file."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet


def json_lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gzipped(path: Path, rows: list) -> Path:
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return path


def json_array(path: Path, rows: list) -> Path:
    path.write_text(json.dumps(rows, indent=1))
    return path


def parquet(path: Path, rows: list) -> Path:
    pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


def arrow_file(path: Path, rows: list) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def arrow_stream(path: Path, rows: list) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


WRITERS = {
    "rows.jsonl": json_lines,
    "rows.jsonl.gz": gzipped,
    "rows.json": json_lines,
    "array.json": json_array,
    "rows.parquet": parquet,
    "file.arrow": arrow_file,
    "stream.arrow": arrow_stream,
}
