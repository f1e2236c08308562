"""B2, B3, B5: every boundary of a save and of a deletion, with a kill or an error in its place.

The fault takes the place of the call: what came before it has happened, it and the rest have not.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint.faults import Call, Faults, Outcome
from checkpoint.saving import newest, save

from gradacc_dist.checkpoint.store import Store
from gradacc_dist.checkpoint.verify import verify
from gradacc_dist.errors import CheckpointError, DiskError

NEW = 7  # mark of the save under test
FAULTS = {"kill": "signal=KILL", "enospc": "error=ENOSPC", "eio": "error=EIO"}


def nothing(folder: Path) -> None:
    """The first save of a run."""


def one(folder: Path) -> None:
    save(folder, 10)


def same(folder: Path) -> None:
    """The step is saved once more."""
    save(folder, 10)
    save(folder, 20)


def crashed(folder: Path) -> None:
    """What kills of two earlier saves and of a deletion left."""
    for step in (4, 10, 20):
        save(folder, step)
    (folder / "step-00000004").rename(folder / "step-00000004.deleting")
    shutil.copytree(folder / "step-00000010", folder / "step-00000010.replaced")
    shutil.copytree(folder / "step-00000020", folder / "step-00000020.saving")
    (folder / "step-00000020.saving" / "manifest.json").unlink()
    (folder / "step-00000020").rename(folder / "step-00000020.replaced")
    (folder / "latest.new").write_text("step-000")


OLD = {nothing: None, one: (10, 0), same: (20, 0), crashed: (20, 0)}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    with Faults(tmp_path_factory.mktemp("faults")) as faults:
        yield faults


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is room: these thousands of fsyncs would wait for a busy disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        yield Path(scratch) / "checkpoints"


def renews(call: Call) -> bool:
    """Whether it gives a new checkpoint its final name."""
    return call.name == "rename" and '.saving", ' in call.arguments and ".new" not in call.arguments


def assert_no_part_has_a_final_name(folder: Path) -> None:
    for path in folder.glob("step-*"):
        if path.suffix not in (".saving", ".deleting"):
            verify(path)


def assert_next_save_works(folder: Path) -> None:
    save(folder, 30)
    assert newest(folder) == (30, 0)
    assert all(path.suffix == "" for path in folder.iterdir()), "left-overs remain"
    assert (folder / "latest").read_text() == "step-00000030\n"


def each(
    faults: Faults, template: Path, job: tuple, fault: str
) -> Iterator[tuple[Call, Outcome, Path]]:
    """Run `job` once per boundary, with the fault there, on a fresh copy of `template`."""
    undisturbed = faults.run(copy_of(template), job)
    assert undisturbed.exit_code == 0, undisturbed.message
    for call in undisturbed.calls:
        inject = f"{call.name}:{FAULTS[fault]}:when={call.number}"
        copy = copy_of(template)
        outcome = faults.run(copy, job, inject)
        if fault == "kill":
            assert outcome.exit_code == -9, f"{call}: {outcome}"
        yield call, outcome, copy


def copy_of(template: Path) -> Path:
    folder = template.with_name("copy")
    shutil.rmtree(folder, ignore_errors=True)
    if template.exists():
        shutil.copytree(template, folder)
    return folder


@pytest.mark.parametrize("earlier", OLD, ids=lambda earlier: earlier.__name__)
@pytest.mark.parametrize("fault", FAULTS)
def test_b2_b5_a_save_with_a_fault_at_any_boundary(
    faults: Faults, folder: Path, earlier, fault: str
) -> None:
    earlier(folder)
    is_new, count = False, 0
    for call, outcome, copy in each(faults, folder, ("save", 20, NEW), fault):
        assert newest(copy) == ((20, NEW) if is_new else OLD[earlier]), f"{call}: {outcome}"
        assert_no_part_has_a_final_name(copy)
        if fault != "kill":
            assert_names_the_disk(call, outcome, copy)
        assert_next_save_works(copy)
        is_new, count = is_new or renews(call), count + 1
    assert is_new, "no call gave the checkpoint its final name"
    assert count > 25, "too few boundaries: some are not seen"


def assert_names_the_disk(call: Call, outcome: Outcome, folder: Path) -> None:
    assert outcome.exit_code == DiskError.exit_code, f"{call}: {outcome}"
    assert str(folder.parent) in outcome.message
    assert "(disk /" in outcome.message
    assert "bytes free)" in outcome.message
    if call.name == "write":
        assert "bytes needed" in outcome.message


@pytest.mark.parametrize("fault", FAULTS)
def test_b3_b5_a_deletion_with_a_fault_at_any_boundary(
    faults: Faults, folder: Path, fault: str
) -> None:
    for step in (10, 20, 30, 40):
        save(folder, step)
    count = 0
    for call, outcome, copy in each(faults, folder, ("prune", 2), fault):
        if "O_RDONLY" not in call.arguments:  # an unreadable one is passed over, then kept
            assert newest(copy) == (40, 0), f"{call}: {outcome}"
            assert fault == "kill" or outcome.exit_code == DiskError.exit_code, f"{call}: {outcome}"
        assert_no_part_has_a_final_name(copy)
        assert {"step-00000030", "step-00000040"} <= {path.name for path in copy.iterdir()}
        copy_is_pruned(copy)
        count += 1
    assert count > 15, "too few boundaries: some are not seen"


def copy_is_pruned(folder: Path) -> None:
    Store(folder).prune(2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "latest",
        "step-00000030",
        "step-00000040",
    ]


def test_b2_all_is_on_the_disk_before_it_gets_its_final_name(faults: Faults, folder: Path) -> None:
    """A power cut keeps what was fsynced: files, then their folder, then the name of the folder."""
    same(folder)
    calls = faults.run(folder, ("save", 20, NEW)).calls
    shown = [f"{call.name} {call.arguments}" for call in calls]
    saving, final = f"{folder}/step-00000020.saving", f"{folder}/step-00000020"

    def last(start: str, path: str) -> int:
        found = [n for n, line in enumerate(shown) if line.startswith(start) and path in line]
        assert found, f"no {start} of {path}"
        return found[-1]

    renamed = last("rename", f'"{saving}", "{final}"')
    files = ["weights-00000.safetensors", "weights-00001.safetensors", "state.json"]
    for name in [*files, "manifest.json"]:
        path = f"<{saving}/{name}>"
        assert last("write", path) < last("fsync", path) < renamed
    assert last("openat", f"{saving}/manifest.json") < last("fsync", f"<{saving}>") < renamed
    synced = [n for n, line in enumerate(shown) if line.startswith("fsync")]
    parent = [n for n in synced if shown[n].endswith(f"<{folder}>")]
    removed = [n for n, line in enumerate(shown) if line.startswith("unlinkat")]
    pointed = last("rename", "latest.new")
    assert renamed < parent[0] < removed[0], "the old one is removed before the new one lasts"
    assert parent[0] < last("fsync", "latest.new>") < pointed < parent[-1]


def test_b3_a_deletion_is_renamed_on_the_disk_before_anything_is_removed(
    faults: Faults, folder: Path
) -> None:
    for step in (10, 20, 30):
        save(folder, step)
    names = [call.name for call in faults.run(folder, ("prune", 2)).calls if call.name != "openat"]
    assert names[:2] == ["rename", "fsync"]
    assert "unlinkat" in names
    assert set(names[2:]) <= {"unlinkat", "rmdir"}


def test_b5_the_disk_is_full_for_the_shard_of_one_rank(faults: Faults, folder: Path) -> None:
    one(folder)
    outcome = faults.run(folder, ("save", 20, NEW), "write:error=ENOSPC:when=1")
    assert outcome.message.startswith(
        f"{folder}/step-00000020.saving/weights-00000.safetensors: cannot be written: "
        "No space left on device (disk "
    )
    with pytest.raises(CheckpointError, match="No such file"):
        verify(folder / "step-00000020")
