from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from gradacc_dist.checkpoint.manifest import FileEntry, Manifest, parse
from gradacc_dist.errors import CheckpointError

PATH = Path("step-00000020/manifest.json")
HEAD = '{"sha256_of_what_follows": "'


def entry(name: str, num_bytes: int = 1, *tensors: str) -> FileEntry:
    return FileEntry(name=name, num_bytes=num_bytes, sha256="0" * 64, tensors=tensors)


def manifest(*files: FileEntry) -> Manifest:
    return Manifest(step=20, files=(*files, entry("state.json")))


def sealed(fields: dict) -> bytes:
    """As somebody who knows the format would write it, by other means than the project's."""
    follows = ('",\n' + json.dumps(fields)[1:] + "\n").encode()
    return HEAD.encode() + hashlib.sha256(follows).hexdigest().encode() + follows


def fields(**changes: object) -> dict:
    return {**json.loads(manifest().model_dump_json()), **changes}


def test_a_manifest_is_read_back_and_is_plain_json() -> None:
    one = manifest(entry("weights-00000.safetensors", 3, "a", 'b "quoted"\n', "ключ"))
    assert parse(one.to_bytes(), PATH) == one
    plain = json.loads(one.to_bytes())
    assert list(plain) == ["sha256_of_what_follows", "format", "step", "files"]
    assert parse(sealed(fields()), PATH) == manifest()


def test_b6_every_single_bit_of_a_manifest_is_guarded() -> None:
    content = manifest(entry("weights-00000.safetensors", 3, "a")).to_bytes()
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
            parse(bytes(damaged), PATH)


def test_b7_every_cut_of_a_manifest_is_found() -> None:
    content = manifest().to_bytes()
    for end in range(len(content)):
        with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
            parse(content[:end], PATH)
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
        parse(content + b"\n", PATH)


def file_fields(**changes: object) -> list:
    return [fields()["files"][0], {**fields()["files"][0], "name": "a.safetensors", **changes}]


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        (fields(format=2), "has format 2, this version reads 1; use the version"),
        ({"step": 20}, "has format None, this version reads 1"),
        (fields(step="20"), "not a manifest: step: Input should be a valid integer"),
        (fields(step=-1), "not a manifest: step: "),
        (fields(extra=1), "not a manifest: extra: Extra inputs"),
        (fields(files=[]), "no state.json among the files"),
        (fields(files=file_fields(name="state.json")), "file 'state.json' is named twice"),
        (fields(files=file_fields(tensors=["a", "a"])), "tensor 'a' is named twice"),
        (fields(files=file_fields(num_bytes=-1)), "files.1.num_bytes"),
        (fields(files=file_fields(sha256="0" * 63)), "files.1.sha256"),
        *[
            (fields(files=file_fields(name=name)), "files.1.name")
            for name in [
                *("../a.safetensors", "/etc/passwd", "b/a.safetensors", ".safetensors"),
                *("model.bin", "a.pt", "a.safetensors\n", "manifest.json", "a.safetensors.pkl"),
            ]
        ],
    ],
)
def test_b7_b8_a_manifest_with_right_hash_and_wrong_content_is_named(
    changed: dict, cause: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(sealed(changed), PATH)
    assert str(caught.value).startswith(f"{PATH}: ")
    assert cause in str(caught.value)


def test_b7_sealed_text_that_is_no_json_is_named() -> None:
    follows = b'",\nnot json\n'
    content = HEAD.encode() + hashlib.sha256(follows).hexdigest().encode() + follows
    with pytest.raises(CheckpointError, match="not a manifest"):
        parse(content, PATH)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 20])
def test_shares_cover_every_file_once_with_bytes_about_even(parts: int) -> None:
    files = [entry(f"weights-{n:05d}.safetensors", 100 + n) for n in range(12)]
    one = manifest(*files)
    shares = [one.share(part, parts) for part in range(parts)]
    names = sorted(file.name for share in shares for file in share)
    assert names == sorted(file.name for file in one.files)
    sizes = [sum(file.num_bytes for file in share) for share in shares]
    assert max(sizes) - min(sizes) <= max(file.num_bytes for file in one.files)


def test_tensors_are_found_by_name_over_all_files() -> None:
    one = manifest(entry("w-0.safetensors", 1, "a", "b"), entry("w-1.safetensors", 1, "c"))
    assert one.tensors() == {"a": "w-0.safetensors", "b": "w-0.safetensors", "c": "w-1.safetensors"}
    assert one.file("w-1.safetensors").tensors == ("c",)


def test_an_entry_crosses_ranks_as_json() -> None:
    one = entry("weights-00001.safetensors", 5, "a", "b")
    assert FileEntry.model_validate_json(one.model_dump_json()) == one
