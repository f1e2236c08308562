from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from gradacc_dist.checkpoint.disk import free_bytes, replace_text, require_space, sync_folder
from gradacc_dist.errors import DiskError, disk_of


def test_b4_needed_and_free_bytes_are_named_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    require_space(folder, 1)
    free = free_bytes(folder)
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, abs=1 << 30)  # others write too
    with pytest.raises(DiskError) as caught:
        require_space(folder, 1 << 60)
    message = str(caught.value)
    assert message.startswith(f"{folder}: too little space: {1 << 60:,} bytes needed, ")
    assert f" free on disk {disk_of(tmp_path)}; free " in message
    assert not folder.exists()
    assert caught.value.exit_code == 25


def test_the_disk_of_a_path_is_its_mount_point() -> None:
    assert disk_of(Path("/proc/self/nowhere/at/all")) == Path("/proc")
    assert disk_of(Path("/")) == Path("/")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_b5_a_full_or_failing_disk_is_named_with_its_bytes(tmp_path: Path, code: int) -> None:
    with pytest.raises(DiskError) as caught, DiskError.naming(tmp_path / "file", 1234567):
        raise OSError(code, os.strerror(code))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/file: cannot be written: {os.strerror(code)} (disk ")
    assert f"(disk {disk_of(tmp_path)}: 1,234,567 bytes needed, " in message
    assert " bytes free); free some space" in message


def test_b5_a_disk_that_cannot_be_asked_is_still_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", fails)
    with pytest.raises(DiskError, match=r"\(disk /.*: bytes free unknown\)"):
        free_bytes(tmp_path)


def test_other_errors_do_not_speak_of_space_left(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="No such file") as caught:
        sync_folder(tmp_path / "nowhere")
    assert "bytes" not in str(caught.value)


def test_a_text_is_replaced_whatever_a_crash_left(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    (tmp_path / "latest.new").write_text("half")
    replace_text(path, "first\n")
    replace_text(path, "second\n")
    assert path.read_text() == "second\n"
    assert list(tmp_path.iterdir()) == [path]
