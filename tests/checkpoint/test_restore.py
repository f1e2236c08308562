"""Tensors come back from verified files only; what does not fit or cannot be read is named."""

import shutil
import struct
from pathlib import Path

import pytest
import torch
from checkpoint.saving import RANKS, save
from safetensors.torch import save_file

from gradacc_dist.checkpoint.manifest import FileEntry, Manifest
from gradacc_dist.checkpoint.restore import (
    SavedTensors,
    candidates_at,
    check_fit,
    find_together,
    first_of,
    verify_together,
)
from gradacc_dist.checkpoint.shards import HostTensor, write_shard
from gradacc_dist.checkpoint.store import Store
from gradacc_dist.checkpoint.verify import verify
from gradacc_dist.errors import CheckpointError, ConfigError, GradaccError

SHAPES = {"w": (2, 3), "b": (3,)}


def checkpoint(folder: Path, *tensors: HostTensor) -> SavedTensors:
    store = Store(folder)
    shard = write_shard(store.begin(1) / "weights-00000.safetensors", tensors)
    final = store.commit(1, [shard], {})
    return SavedTensors(final, verify(final))


def f32(name: str, *shape: int) -> HostTensor:
    count = torch.Size(shape).numel()
    return HostTensor(name, "F32", shape, struct.pack(f"<{count}f", *range(count)))


def trained(**others: HostTensor) -> list[HostTensor]:
    return [*{"w": f32("w", 2, 3), "b": f32("b", 3), **others}.values()]


def test_tensors_keep_format_and_outlive_their_file(tmp_path):
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    data = half.view(torch.uint8).numpy().tobytes()
    saved = checkpoint(tmp_path, f32("w", 2, 3), HostTensor("h", "BF16", (2,), data))
    w, h = saved["w"], saved["h"]
    (file,) = saved.folder.glob("*.safetensors")
    with file.open("r+b") as content:  # in place: a view of the mapped file would see it
        content.write(b"\0" * file.stat().st_size)
    shutil.rmtree(saved.folder)
    assert torch.equal(w, torch.arange(6.0).reshape(2, 3))
    assert h.dtype == torch.bfloat16
    assert torch.equal(h, half)
    assert (sorted(saved), len(saved), "x" in saved) == (["h", "w"], 2, False)
    with pytest.raises(KeyError):
        saved["x"]


def test_a_file_that_is_no_safetensors_is_a_checkpoint_error(tmp_path):
    (tmp_path / "weights-00000.safetensors").write_bytes(b"no header" * 9)
    entry = FileEntry(
        name="weights-00000.safetensors", num_bytes=1, sha256="0" * 64, tensors=("w",)
    )
    state = FileEntry(name="state.json", num_bytes=1, sha256="0" * 64)
    saved = SavedTensors(tmp_path, Manifest(step=1, files=(entry, state)))
    with pytest.raises(CheckpointError, match=r"weights-00000.safetensors: cannot be read as safe"):
        saved["w"]
    save_file({"other": torch.zeros(1)}, tmp_path / "weights-00000.safetensors")
    with pytest.raises(CheckpointError, match="restore it from a copy"):
        saved.shape("w")


def test_what_fits_fits(tmp_path):
    beside = {n: f32(n, 2, 3) for n in ("exp_avg/w", "exp_avg_sq/w")} | {"s": f32("step/w")}
    assert check_fit(checkpoint(tmp_path, *trained(**beside)), SHAPES) == 5


@pytest.mark.parametrize(
    ("others", "cause"),
    [
        ({"b": f32("c", 3)}, "b is missing; c is not in the model"),
        ({"w": f32("w", 3, 2)}, "w is 3 x 2, 2 x 3 in the model"),
        ({"m": f32("exp_avg/w", 6)}, "exp_avg/w is 6, 2 x 3 in the model"),
        ({"m": f32("exp_avg/x", 6)}, "exp_avg/x is not in the model"),
        ({"m": f32("exp_avg/w")}, "exp_avg/w is one number, 2 x 3 in the model"),
        ({n: f32(n, 1) for n in "vxyz"}, "v is not in the model; .* and 1 more"),
    ],
)
def test_another_models_tensors_are_named(tmp_path, others, cause):
    with pytest.raises(CheckpointError, match=f"is of another model: {cause}"):
        check_fit(checkpoint(tmp_path, *trained(**others)), SHAPES)


def test_a_path_may_be_a_checkpoint_a_run_or_its_checkpoints(tmp_path):
    newest = save(tmp_path / "checkpoints", 2)
    save(tmp_path / "checkpoints", 1)
    for path in (tmp_path, tmp_path / "checkpoints", newest):
        found, passed_over = first_of(candidates_at(path), verify)
        assert (found.folder, passed_over) == (newest, [])
    for path in (tmp_path / "none", newest.parent.parent.parent):
        with pytest.raises(ConfigError, match=r"^run.resume: .* is neither a checkpoint"):
            candidates_at(path)


def test_b6_one_that_is_named_never_falls_back_and_none_left_is_an_error(tmp_path):
    older, newer = (save(tmp_path, step) for step in (1, 2))
    (newer / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state.json: damaged"):
        first_of(candidates_at(newer), verify)
    found, passed_over = first_of(candidates_at(tmp_path), verify)
    assert found.folder == older
    assert len(passed_over) == 1
    (older / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of the checkpoints can be used") as caught:
        first_of(candidates_at(tmp_path), verify)
    assert all(str(folder) in str(caught.value) for folder in (older, newer))


def found_by(world, folder):
    try:
        found, passed_over = find_together(lambda: candidates_at(folder), world)
    except GradaccError as error:
        return str(error), error.exit_code
    return found.folder, passed_over


@pytest.mark.parametrize("damaged", range(RANKS))
def test_ranks_share_the_work_and_agree_on_what_one_of_them_finds(pools, tmp_path, damaged):
    older, newer = (save(tmp_path, step) for step in (1, 2))
    assert pools[2].run(found_by, tmp_path) == [(newer, [])] * 2
    shard = newer / f"weights-{damaged:05d}.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    one, other = pools[2].run(found_by, tmp_path)
    assert one == other
    assert one[0] == older
    assert shard.name in one[1][0]
    one, other = pools[2].run(found_by, newer)
    assert one == other
    assert shard.name in one[0]
    assert one[1] == 12
    told, silent = pools[2].run(found_by, tmp_path / "none")
    assert (told[1], silent[1]) == (10, 10)


def verified_by(world, folders):
    try:
        verify_together(folders[world.rank], world)
    except CheckpointError as error:
        return str(error)


def test_ranks_that_see_different_checkpoints_stop(pools, tmp_path):
    """A folder of the same name on each node's own disk, for example."""
    one, other = (save(tmp_path / str(rank), 1, mark=rank) for rank in range(2))
    texts = pools[2].run(verified_by, (one, other))
    assert all("the ranks see different manifests there" in text for text in texts)
    assert pools[2].run(verified_by, (one, one)) == [None, None]
