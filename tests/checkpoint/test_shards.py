from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gradacc_dist.checkpoint import disk
from gradacc_dist.checkpoint.shards import ITEM_BYTES, HostTensor, write_shard
from gradacc_dist.errors import DiskError

NAMES = (
    "BOOL:bool U8:uint8 I8:int8 F8_E4M3:float8_e4m3fn F8_E5M2:float8_e5m2 U16:uint16 I16:int16 "
    "F16:float16 BF16:bfloat16 U32:uint32 I32:int32 F32:float32 U64:uint64 I64:int64 F64:float64 "
    "C64:complex64"
)
DTYPES = {ours: getattr(torch, theirs) for ours, theirs in (n.split(":") for n in NAMES.split())}


def host_tensor(name: str, dtype: str, tensor: torch.Tensor) -> HostTensor:
    data = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
    return HostTensor(name, dtype, tuple(tensor.shape), data)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.uint8).tolist()


def random(dtype: str, *shape: int) -> torch.Tensor:
    num_bytes = int(np.prod(shape)) * ITEM_BYTES[dtype]
    high = 2 if dtype == "BOOL" else 256  # any bits, NaN and subnormal numbers too
    generator = torch.Generator().manual_seed(num_bytes)
    data = torch.randint(0, high, (num_bytes,), dtype=torch.uint8, generator=generator)
    return data.view(DTYPES[dtype]).reshape(shape)


def test_every_dtype_is_read_back_by_the_formats_own_library(tmp_path: Path) -> None:
    assert set(DTYPES) == set(ITEM_BYTES)
    given = {
        f"{dtype}.{len(shape)}": random(dtype, *shape)
        for dtype in DTYPES
        for shape in [(), (3,), (5, 7)]
    }
    path = tmp_path / "weights-00000.safetensors"
    entry = write_shard(path, [host_tensor(n, n.split(".")[0], t) for n, t in given.items()])
    read = load_file(path)
    assert read.keys() == given.keys() == set(entry.tensors)
    for name, tensor in given.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert bits(read[name]) == bits(tensor)


def test_the_entry_states_name_bytes_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "optimizer-00003.safetensors"
    entry = write_shard(path, [host_tensor("a", "F32", random("F32", 9))])
    content = path.read_bytes()
    assert entry.name == path.name
    assert entry.num_bytes == len(content)
    assert entry.sha256 == hashlib.sha256(content).hexdigest()


def test_no_elements_no_tensors_and_strange_names(tmp_path: Path) -> None:
    names = ["", " ", "a/../b", 'quote"s\\', "line\nbreak", "ключ 鍵 🔑", "x" * 5000, "\x00"]
    given = {name: random("BF16", 2) for name in names} | {"none": random("I64", 0, 3)}
    dtypes = {name: "I64" if name == "none" else "BF16" for name in given}
    path = tmp_path / "weights-00000.safetensors"
    write_shard(path, [host_tensor(name, dtypes[name], t) for name, t in given.items()])
    read = load_file(path)
    assert read.keys() == given.keys()
    assert all(bits(read[name]) == bits(given[name]) for name in given)
    assert read["none"].shape == (0, 3)

    empty = tmp_path / "weights-00001.safetensors"  # a rank without a share
    assert write_shard(empty, []).tensors == ()
    assert load_file(empty) == {}


def test_buffers_of_numpy_and_a_mapped_file_are_taken_as_they_are(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float64).reshape(3, 4)
    scalar = np.array(3.5, dtype=np.float32)
    path = tmp_path / "weights-00000.safetensors"
    write_shard(
        path,
        [
            HostTensor("array", "F64", array.shape, memoryview(array)),
            HostTensor("scalar", "F32", (), memoryview(scalar)),
            HostTensor("bytes", "U8", (2,), bytearray(b"ab")),
            HostTensor("nothing", "F32", (0, 4), memoryview(np.zeros((0, 4), np.float32))),
        ],
    )
    with safe_open(path, "numpy") as read:
        assert (read.get_tensor("array") == array).all()
        assert read.get_tensor("scalar") == scalar
        assert read.get_tensor("bytes").tobytes() == b"ab"
        assert read.get_tensor("nothing").shape == (0, 4)


def test_every_tensor_is_aligned_to_its_elements(tmp_path: Path) -> None:
    given = [host_tensor(f"{n}.{d}", d, random(d, n)) for n in (1, 3) for d in DTYPES]
    path = tmp_path / "weights-00000.safetensors"
    write_shard(path, given)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert (8 + length) % 8 == 0
    for entry in json.loads(content[8 : 8 + length]).values():
        assert entry["data_offsets"][0] % ITEM_BYTES[entry["dtype"]] == 0


def test_content_does_not_depend_on_chunks_or_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [host_tensor(name, "F32", random("F32", 33)) for name in "abc"]
    whole = write_shard(tmp_path / "weights-00000.safetensors", tensors)
    monkeypatch.setattr(disk, "CHUNK_BYTES", 7)
    (tmp_path / "again").mkdir()
    chunked = write_shard(tmp_path / "again" / "weights-00000.safetensors", tensors[::-1])
    assert chunked == whole


def test_data_is_streamed_in_chunks_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(3 * disk.CHUNK_BYTES + 5)
    sizes = []

    def write(file: int, chunk: memoryview) -> int:
        assert chunk.obj is data or len(chunk) < 1000, "a copy was written"
        sizes.append(len(chunk))
        return len(chunk)

    monkeypatch.setattr(disk.os, "write", write)
    write_shard(tmp_path / "weights-00000.safetensors", [HostTensor("a", "U8", (len(data),), data)])
    assert sizes[1:] == [disk.CHUNK_BYTES] * 3 + [5]


def test_b5_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = disk.os.write
    monkeypatch.setattr(disk.os, "write", lambda file, chunk: real_write(file, chunk[:10]))
    tensor = random("F32", 100)
    path = tmp_path / "weights-00000.safetensors"
    write_shard(path, [host_tensor("a", "F32", tensor)])
    assert bits(load_file(path)["a"]) == bits(tensor)


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "weights-00000.safetensors"
    path.write_text("another rank's")
    with pytest.raises(DiskError, match="File exists") as caught:
        write_shard(path, [])
    assert str(path) in str(caught.value)
    assert path.read_text() == "another rank's"


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ([HostTensor("a", "F32", (2,), b"1234")], "4 bytes given, not 8"),
        ([HostTensor("a", "U8", (1,), b"1")] * 2, "'a' is given twice"),
        ([HostTensor("__metadata__", "U8", (1,), b"1")], "__metadata__"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, tensors, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        write_shard(tmp_path / "weights-00000.safetensors", tensors)
    assert list(tmp_path.iterdir()) == []
