"""B6, B7, B8: what is wrong in a checkpoint is named before any of it is used."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoint.saving import content, newest, save
from safetensors import SafetensorError, safe_open

import gradacc_dist
from gradacc_dist.checkpoint.manifest import FileEntry, Manifest
from gradacc_dist.checkpoint.store import Store
from gradacc_dist.checkpoint.verify import read_manifest, read_state, verify
from gradacc_dist.errors import CheckpointError

SHARD = "weights-00001.safetensors"
FILES = ["manifest.json", "state.json", "weights-00000.safetensors", SHARD]
NUM_FLIPS = 50


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of checkpoints: steps 10 and 20."""
    save(tmp_path / "checkpoints", 10)
    save(tmp_path / "checkpoints", 20)
    return tmp_path / "checkpoints"


def assert_passed_over(folder: Path, *shown: str) -> None:
    """That step 20 is refused for a reason that holds all of `shown`, and step 10 found."""
    with pytest.raises(CheckpointError) as caught:
        verify(folder / "step-00000020")
    found, passed_over = Store(folder).newest_complete()
    assert found is not None
    assert content(found) == (10, 0)
    assert passed_over == [str(caught.value)]
    for text in (str(folder / "step-00000020"), "; restore it from a copy, or ", *shown):
        assert text in passed_over[0]


def flip(path: Path, bit: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)


@pytest.mark.parametrize("kind", ["shard header", "shard data", "state.json", "manifest.json"])
def test_b6_fifty_of_fifty_bit_flips_are_found(folder: Path, kind: str) -> None:
    path = folder / "step-00000020" / (SHARD if "shard" in kind else kind)
    size = path.stat().st_size
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    span = {"shard header": (0, header), "shard data": (header, size)}.get(kind, (0, size))
    bits = random.Random(kind).sample(range(8 * span[0], 8 * span[1]), NUM_FLIPS)
    for bit in bits:
        flip(path, bit)
        assert_passed_over(folder, f"{path}: damaged")
        flip(path, bit)
    assert newest(folder) == (20, 0), "the flips were not undone: the test shows nothing"


def test_b6_a_flipped_pointer_misleads_nobody(folder: Path) -> None:
    path = folder / "latest"
    assert path.read_text() == "step-00000020\n"
    for bit in random.Random(0).sample(range(8 * path.stat().st_size), NUM_FLIPS):
        flip(path, bit)
        assert newest(folder) == (20, 0)
        flip(path, bit)
    path.write_text("step-00000010\n")
    assert newest(folder) == (20, 0)
    path.unlink()
    assert newest(folder) == (20, 0)


def test_b6_a_flip_is_found_by_the_part_that_reads_the_file(folder: Path) -> None:
    checkpoint = folder / "step-00000020"
    flip(checkpoint / SHARD, 999)
    found = []
    for part in range(3):
        try:
            assert verify(checkpoint, part, 3) == read_manifest(checkpoint)
        except CheckpointError as error:
            found.append(str(error))
    assert len(found) == 1
    assert found[0].startswith(f"{checkpoint / SHARD}: damaged: its SHA-256 is ")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "shown"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 1), ": damaged"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), ": damaged"),
        (lambda path: os.truncate(path, 0), ": damaged"),
        (lambda path: path.unlink(), ": cannot be read: No such file or directory"),
        (lambda path: (path.unlink(), path.mkdir()), ": not an ordinary file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), ": not an ordinary file"),
        (lambda path: (path.unlink(), path.symlink_to(path)), ": cannot be read: "),
        (lambda path: path.write_text("somebody else's"), ": damaged"),
    ],
    ids=["cut", "longer", "empty", "missing", "folder", "pipe", "loop", "foreign"],
)
def test_b7_a_file_that_is_not_what_was_saved_is_named(
    folder: Path, name: str, damage, shown: str
) -> None:
    damage(folder / "step-00000020" / name)
    assert_passed_over(folder, f"{name}{shown}")


def test_b7_expected_and_found_are_stated(folder: Path) -> None:
    path = folder / "step-00000020" / SHARD
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    flip(path, 0)
    damaged = hashlib.sha256(path.read_bytes()).hexdigest()
    assert_passed_over(folder, f"damaged: its SHA-256 is {damaged}, the manifest says {sha256}; ")
    os.truncate(path, 7)
    assert_passed_over(folder, f"damaged: its size in bytes is 7, the manifest says {size}; ")


def test_b7_an_empty_or_mixed_up_folder_is_named(folder: Path) -> None:
    checkpoint = folder / "step-00000020"
    shutil.copy(folder / "step-00000010" / SHARD, checkpoint)  # whole, but of another save
    assert_passed_over(folder, f"{SHARD}: damaged: its SHA-256")
    shutil.copytree(folder / "step-00000010", checkpoint, dirs_exist_ok=True)
    found, passed_over = Store(folder).newest_complete()
    assert found is not None
    assert found.folder.name == "step-00000010"
    assert passed_over == [f"{checkpoint}: holds step 10; give it its own name back"]
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    assert_passed_over(folder, "manifest.json: cannot be read: No such file")


def test_b7_a_manifest_of_another_version_is_passed_over(folder: Path) -> None:
    path = folder / "step-00000020" / "manifest.json"
    _seal(path, {**json.loads(read_manifest(path.parent).model_dump_json()), "format": 2})
    found, (reason,) = Store(folder).newest_complete()
    assert found is not None
    assert reason.startswith(f"{path}: has format 2, this version reads 1; use the version of ")


def _seal(path: Path, fields: dict) -> None:
    follows = ('",\n' + json.dumps(fields)[1:] + "\n").encode()
    sha256 = hashlib.sha256(follows).hexdigest().encode()
    path.write_bytes(b'{"sha256_of_what_follows": "' + sha256 + follows)


@contextmanager
def without_root() -> Iterator[None]:
    """As a user whom permissions bind."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def open_folder(folder: Path) -> Iterator[Path]:
    """`folder`, where every user can reach it."""
    reachable = Path(shutil.move(folder, f"/tmp/gradacc-test-{os.getpid()}"))
    reachable.chmod(0o755)
    yield reachable
    reachable.chmod(0o755)
    for path in reachable.glob("step-*"):
        path.chmod(0o755)
    shutil.rmtree(reachable)


@pytest.mark.parametrize("name", FILES)
def test_b7_a_file_without_permission_is_named(open_folder: Path, name: str) -> None:
    (open_folder / "step-00000020" / name).chmod(0)
    with without_root():
        assert_passed_over(open_folder, f"{name}: cannot be read: Permission denied")


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o444])
def test_b7_a_folder_without_permission_is_named(open_folder: Path, mode: int) -> None:
    (open_folder / "step-00000020").chmod(mode)
    with without_root():
        assert_passed_over(open_folder, "manifest.json: cannot be read: Permission denied")
    open_folder.chmod(0)
    with without_root(), pytest.raises(CheckpointError, match="cannot be listed: Permission"):
        Store(open_folder).newest_complete()


class Payload:
    """What a pickle can do: make a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """Made by the payload, should anything read it."""
    mark = tmp_path / "executed"
    yield mark
    assert not mark.exists(), "a planted pickle was executed"


def load(folder: Path) -> tuple[int, int]:
    """All that a resume reads of the newest complete checkpoint."""
    found, _ = Store(folder).newest_complete()
    assert found is not None
    for name, file in found.manifest.tensors().items():
        with safe_open(found.folder / file, "numpy") as shard:
            shard.get_tensor(name)
    return content(found)


def test_b8_the_payload_would_leave_its_mark(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name",
    [
        *(".metadata", "pytorch_model.bin", "optimizer.pt", "model.pt", "latest.pkl"),
        *("weights-00002.safetensors", "random_states_0.pkl", "manifest.pkl", "manifest.json.pkl"),
    ],
)
def test_b8_a_pickle_beside_is_never_opened(folder: Path, mark: Path, name: str) -> None:
    for place in (folder, folder / "step-00000020"):
        (place / name).write_bytes(pickle.dumps(Payload(mark)))
    assert load(folder) == (20, 0)


@pytest.mark.parametrize("name", FILES)
def test_b8_a_pickle_in_place_of_a_file_is_passed_over(folder: Path, mark: Path, name: str) -> None:
    (folder / "step-00000020" / name).write_bytes(pickle.dumps(Payload(mark)))
    assert_passed_over(folder, name)
    assert load(folder) == (10, 0)


def test_b8_a_pickle_with_a_forged_manifest_is_refused_not_executed(
    folder: Path, mark: Path
) -> None:
    """Hashes tell damage, not malice: whoever writes the folder writes the hashes too."""
    checkpoint = folder / "step-00000020"
    planted = pickle.dumps(Payload(mark))
    sha256 = hashlib.sha256(planted).hexdigest()
    entries = []
    for name, tensors in [("state.json", ()), (SHARD, ("layer.0.weight",))]:
        (checkpoint / name).write_bytes(planted)
        entries.append(FileEntry(name=name, num_bytes=len(planted), sha256=sha256, tensors=tensors))
    manifest = Manifest(step=20, files=tuple(entries))
    (checkpoint / "manifest.json").write_bytes(manifest.to_bytes())
    assert verify(checkpoint) == manifest
    with pytest.raises(CheckpointError, match=r"state\.json: not JSON"):
        read_state(checkpoint, manifest)
    with pytest.raises(SafetensorError):
        safe_open(checkpoint / SHARD, "numpy")


def test_b8_nothing_of_the_package_can_read_a_pickle() -> None:
    unsafe = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in Path(gradacc_dist.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            assert not {name.split(".")[0] for name in names} & unsafe, f"{path} imports {names}"
            if isinstance(node, ast.Attribute) and node.attr == "load":
                assert ast.unparse(node.value) != "torch", f"{path}: torch.load"


def test_b8_a_state_that_changes_after_it_was_verified_is_not_parsed(folder: Path) -> None:
    checkpoint = folder / "step-00000020"
    manifest = verify(checkpoint)
    (checkpoint / "state.json").write_text('{"step": 99}')
    with pytest.raises(CheckpointError, match=r"state\.json: damaged: its SHA-256"):
        read_state(checkpoint, manifest)


def test_the_disk_layer_needs_no_torch() -> None:
    modules = ["disk", "lock", "manifest", "shards", "store", "verify"]
    imports = "; ".join(f"import gradacc_dist.checkpoint.{module}" for module in modules)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; {imports}; print({{'torch', 'numpy'}} & set(sys.modules))",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
