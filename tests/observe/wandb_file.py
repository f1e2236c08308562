"""Read what wandb's real client wrote: a log in the format of LevelDB, of protobuf records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER_BYTES, BLOCK_BYTES = 7, 2**15
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Record]:
    """https://github.com/google/leveldb/blob/main/doc/log_format.md, after 7 bytes of wandb's."""
    content = path.read_bytes()
    assert content.startswith(b":W&B")
    at, parts = HEADER_BYTES, b""
    while at + HEADER_BYTES <= len(content):
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEADER_BYTES or kind == 0:  # the rest of the block is filler
            at += left
            continue
        parts += content[at + HEADER_BYTES : at + HEADER_BYTES + size]
        at += HEADER_BYTES + size
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""


class Recorded:
    """An offline run: its name, project and tags, its configuration and its history by step."""

    def __init__(self, output: Path) -> None:
        (path,) = output.glob("wandb/offline-run-*/run-*.wandb")
        self.folder = path.parent
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        for record in records(path):
            if record.HasField("run"):
                self.run = record.run
                self.config |= _values(record.run.config.update)
            elif record.HasField("config"):
                self.config |= _values(record.config.update)
            elif record.HasField("history"):
                self.history.append(_values(record.history.item))
            elif record.HasField("exit"):
                self.exit_code = record.exit.exit_code


def _values(items: Iterable[Any]) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
