"""Who notes a launch in the output folder: this process, unless a scheduler's part did it."""

import sys

import pytest

from launcher.cli import main
from launcher.launches import KIND, Launch, LaunchFolder, Outcome, newest
from launcher.watching import state_of


@pytest.fixture
def ranks_that_end_at_once(tmp_path, monkeypatch):
    """A rank that does nothing, well."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").write_text("#!/bin/sh\nexit 0\n")
    (folder / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    for name in ("GRADACC_ATTEMPT", "NNODES", KIND):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("by", "kind"), [(None, "foreground"), ("kubernetes", "kubernetes")])
def test_a_launch_that_nobody_else_notes_is_noted_here(
    by, kind, ranks_that_end_at_once, tmp_path, monkeypatch
):
    monkeypatch.setenv("GRADACC_LAUNCH_ID", "id-1")
    if by is not None:
        monkeypatch.setenv(KIND, by)
    assert main(["train", "--cpu", "--run.output_dir", str(tmp_path / "out")]) == 0
    folder, launch = newest(tmp_path / "out")
    assert (launch.id, launch.kind) == ("id-1", kind)
    assert launch.command == ("train", "--cpu", "--run.output_dir", str(tmp_path / "out"))
    outcome = folder.read_outcome()
    assert outcome is not None
    assert outcome.exit_code == 0


@pytest.mark.parametrize("by", ["local", "slurm"])
def test_a_launch_that_was_noted_is_left_as_it_is(
    by, ranks_that_end_at_once, tmp_path, monkeypatch
):
    monkeypatch.setenv("GRADACC_LAUNCH_ID", "id-1")
    monkeypatch.setenv(KIND, by)
    assert main(["train", "--cpu", "--run.output_dir", str(tmp_path / "out")]) == 0
    written = [path.name for path in (tmp_path / "out" / "launches" / "id-1").iterdir()]
    assert written == ["outcome.json"]


def test_the_end_of_an_earlier_try_is_not_that_of_the_one_that_runs(tmp_path):
    """Kubernetes starts a launch again under its old name."""
    folder = LaunchFolder.of(tmp_path, "id-1")
    again = Launch("id-1", "kubernetes", "another-host", started=20.0, command=("train",))
    folder.write_launch(again)
    folder.write_outcome(Outcome(23, "asked to leave", ended=10.0))
    assert state_of(folder, again).goes_on is None
    folder.write_outcome(Outcome(0, "", ended=30.0))
    assert state_of(folder, again).goes_on is False


@pytest.mark.parametrize("by", ["kubernetes", ""])
def test_each_start_of_a_launch_is_noted_anew(by, ranks_that_end_at_once, tmp_path, monkeypatch):
    """It is another process, or another pod."""
    monkeypatch.setenv("GRADACC_LAUNCH_ID", "id-1")
    monkeypatch.setenv(KIND, by)
    words = ["train", "--cpu", "--run.output_dir", str(tmp_path / "out")]
    started = []
    for _ in range(2):
        assert main(words) == 0
        started.append(newest(tmp_path / "out")[1].started)
    assert started[1] > started[0]
