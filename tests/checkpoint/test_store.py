from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from checkpoint.saving import newest, save, tensors

from gradacc_dist.checkpoint.manifest import Manifest
from gradacc_dist.checkpoint.shards import write_shard
from gradacc_dist.checkpoint.store import Store
from gradacc_dist.checkpoint.verify import read_state, verify
from gradacc_dist.errors import CheckpointError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def steps(folder: Path) -> list[int]:
    return [step for step, _ in Store(folder).candidates()]


def test_a_save_leaves_one_folder_of_plain_files_and_the_pointer(tmp_path: Path) -> None:
    final = save(tmp_path / "checkpoints", 20)
    assert final == tmp_path / "checkpoints" / "step-00000020"
    assert names(tmp_path / "checkpoints") == ["latest", "step-00000020"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000020\n"
    shards = ["weights-00000.safetensors", "weights-00001.safetensors"]
    assert names(final) == ["manifest.json", "state.json", *shards]
    assert json.loads((final / "state.json").read_text()) == {"step": 20, "mark": 0}
    assert json.loads((final / "manifest.json").read_text())["step"] == 20


def test_nothing_was_saved_yet(tmp_path: Path) -> None:
    store = Store(tmp_path / "checkpoints")
    assert store.newest_complete() == (None, [])
    assert store.candidates() == []
    assert store.prune(2) == []
    store.clear()
    assert not store.folder.exists()


def test_state_floats_and_large_numbers_are_read_back_exactly(tmp_path: Path) -> None:
    store = Store(tmp_path)
    state = {"loss_scale": 1 / 3, "rng": 2**127 + 1, "nan": float("inf"), "name": "é\n"}
    store.begin(1)
    final = store.commit(1, [], state)
    assert read_state(final, verify(final)) == state


def test_candidates_are_ordered_by_step_not_by_name(tmp_path: Path) -> None:
    for step in (9, 100_000_000, 99_999_999, 10):
        save(tmp_path, step)
    assert steps(tmp_path) == [100_000_000, 99_999_999, 10, 9]
    assert newest(tmp_path) == (100_000_000, 0)


def test_foreign_names_are_neither_read_nor_removed(tmp_path: Path) -> None:
    save(tmp_path, 10)
    for foreign in ("step-20", "step-00000030.bak", "best", "step-00000030.saving.old"):
        shutil.copytree(tmp_path / "step-00000010", tmp_path / foreign)
    (tmp_path / "step-00000040").write_text("a file")
    (tmp_path / "step-00000050.saving").write_text("a file")
    before = names(tmp_path)
    assert newest(tmp_path) == (10, 0)
    Store(tmp_path).clear()
    Store(tmp_path).prune(2)
    assert names(tmp_path) == before


def test_b2_of_one_step_saved_again_the_earlier_is_found_in_between(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / "step-00000020").rename(tmp_path / "step-00000020.replaced")
    assert newest(tmp_path) == (20, 0)
    save(tmp_path, 20, mark=1)
    assert newest(tmp_path) == (20, 1)
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000020"]


def test_b2_a_damaged_checkpoint_is_replaced_by_saving_its_step_again(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (save(tmp_path, 20) / "state.json").unlink()
    save(tmp_path, 20, mark=1)
    assert newest(tmp_path) == (20, 1)
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000020"]


def test_b5_a_failed_save_gives_its_space_back(tmp_path: Path) -> None:
    save(tmp_path, 10)
    store = Store(tmp_path)
    write_shard(store.begin(20) / "weights-00000.safetensors", tensors(0, 20))
    assert "step-00000020.saving" in names(tmp_path)
    store.clear()
    assert names(tmp_path) == ["latest", "step-00000010"]


def test_a_shard_that_rank_0_does_not_see_is_named_before_the_rename(tmp_path: Path) -> None:
    """As where each node has a disk of its own under run.output_dir."""
    store = Store(tmp_path / "checkpoints")
    saving = store.begin(20)
    here = write_shard(saving / "weights-00000.safetensors", tensors(0, 20))
    there = write_shard(tmp_path / "weights-00001.safetensors", tensors(1, 20))
    with pytest.raises(CheckpointError) as caught:
        store.commit(20, [here, there], {})
    message = str(caught.value)
    assert message.startswith(f"{saving / there.name}: {there.num_bytes} bytes were written by ")
    assert message.endswith(
        "0 are seen here; set --run.output_dir to a folder that all nodes share"
    )
    assert store.newest_complete() == (None, [])


@pytest.mark.parametrize(
    ("keep", "every", "left"),
    [
        (2, None, [60, 50]),
        (3, None, [60, 50, 40]),
        (2, 20, [60, 50, 40, 20]),
        (2, 30, [60, 50, 30]),
        (9, None, [60, 50, 40, 30, 20, 10]),
    ],
)
def test_b3_the_newest_and_every_nth_are_kept(
    tmp_path: Path, keep: int, every: int | None, left: list[int]
) -> None:
    for step in range(10, 70, 10):
        save(tmp_path, step)
    deleted = Store(tmp_path).prune(keep, every)
    assert steps(tmp_path) == left
    assert deleted == [tmp_path / f"step-{s:08d}" for s in (50, 40, 30, 20, 10) if s not in left]
    assert not any(path.exists() for path in deleted)


def test_b3_fewer_than_two_are_never_kept(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="keep=1"):
        Store(tmp_path).prune(1)


def test_b3_nothing_is_deleted_in_favour_of_a_damaged_one(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    for step in (40, 50):
        (tmp_path / f"step-{step:08d}" / "weights-00000.safetensors").write_bytes(b"")
    Store(tmp_path).prune(2)
    assert steps(tmp_path) == [50, 40, 30, 20]
    for step in (20, 30):
        (tmp_path / f"step-{step:08d}" / "state.json").unlink()
    assert Store(tmp_path).prune(2) == []
    assert steps(tmp_path) == [50, 40, 30, 20]


def test_b3_what_was_moved_and_linked_is_unlinked_only(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path / "checkpoints", step)
    link, moved = tmp_path / "checkpoints" / "step-00000010", tmp_path / "moved"
    link.rename(moved)
    link.symlink_to(moved)
    Store(tmp_path / "checkpoints").prune(2)
    assert steps(tmp_path / "checkpoints") == [30, 20]
    assert verify(moved).step == 10


def test_ranks_may_share_the_check_and_fall_back_together(tmp_path: Path) -> None:
    """`check` as the ranks will give it: each its part, and one verdict for all."""
    for step in (10, 20):
        save(tmp_path, step)
    path = tmp_path / "step-00000020" / "weights-00001.safetensors"
    path.write_bytes(path.read_bytes()[::-1])

    def check(folder: Path) -> Manifest:
        manifests = [verify(folder, part, 2) for part in range(2)]
        assert manifests[0] == manifests[1]
        return manifests[0]

    found, (reason,) = Store(tmp_path).newest_complete(check)
    assert found is not None
    assert found.manifest.step == 10
    assert reason.startswith(f"{path}: damaged: its SHA-256 is ")
    assert Store(tmp_path).prune(2, check=check) == []
