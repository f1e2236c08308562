"""One rank's tensors as one safetensors file, streamed: no second copy of the data is held.

The format: 8 bytes with the length of the header (little-endian), the header in JSON
({name: {dtype, shape, data_offsets}}), the data without gaps.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from gradacc_dist.checkpoint.disk import Bytes, write_new
from gradacc_dist.checkpoint.manifest import FileEntry

ITEM_BYTES = MappingProxyType(
    {
        **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"], 1),
        **dict.fromkeys(["U16", "I16", "F16", "BF16"], 2),
        **dict.fromkeys(["U32", "I32", "F32"], 4),
        **dict.fromkeys(["U64", "I64", "F64", "C64"], 8),
    }
)
"""Bytes per element of each dtype, by its name in safetensors."""


@dataclass(frozen=True)
class HostTensor:
    """A whole tensor in host memory."""

    name: str
    dtype: str
    """As safetensors calls it: `F32`, `BF16`, ..."""
    shape: tuple[int, ...]
    data: Bytes
    """C-contiguous, little-endian, of exactly the bytes that dtype and shape say."""

    @property
    def num_bytes(self) -> int:
        """Bytes by dtype and shape."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


def write_shard(path: Path, tensors: Iterable[HostTensor]) -> FileEntry:
    """Write `tensors` into the new file `path` and see it onto the disk. Raises DiskError."""
    # Widest elements first, as the format's own library does: each tensor is then aligned.
    ordered = sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name))
    parts = [_header(ordered), *(tensor.data for tensor in ordered)]
    num_bytes, sha256 = write_new(path, parts)
    names = tuple(tensor.name for tensor in ordered)
    return FileEntry(name=path.name, num_bytes=num_bytes, sha256=sha256, tensors=names)


def _header(tensors: list[HostTensor]) -> bytes:
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for tensor in tensors:
        given = memoryview(tensor.data).nbytes
        assert given == tensor.num_bytes, f"{tensor}: {given} bytes given, not {tensor.num_bytes}"
        assert tensor.name not in entries, f"{tensor.name!r} is given twice"
        assert tensor.name != "__metadata__", "__metadata__ means something else in safetensors"
        start, end = end, end + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # so that the data begins aligned
    return len(text).to_bytes(8, "little") + text
