"""What is noted of launches, and which processes are theirs."""

import dataclasses
import os
import socket
import subprocess
import sys

import pytest

from gradacc_dist.errors import ConfigError, DiskError
from launcher.launches import Launch, LaunchFolder, Outcome, is_alive, new_id, newest, start_ticks


def launch(name: str, started: float, **more) -> Launch:
    host = more.pop("host", socket.gethostname())
    return Launch(name, more.pop("kind", "foreground"), host, started, ("train", "--cpu"), **more)


def test_what_is_noted_is_read_again(tmp_path):
    folder = LaunchFolder.of(tmp_path, "id-1")
    assert folder.path == tmp_path / "launches" / "id-1"
    this = launch("id-1", 1.5, pid=os.getpid(), pid_began=start_ticks(os.getpid()))
    folder.write_launch(this)
    assert folder.read_launch() == this
    assert folder.read_outcome() is None
    folder.write_outcome(Outcome(23, "asked to leave", 9.0, restarts=2))
    assert folder.read_outcome() == Outcome(23, "asked to leave", 9.0, 2)
    assert sorted(path.name for path in folder.path.iterdir()) == ["launch.json", "outcome.json"]


def test_the_newest_is_the_one_started_last_whatever_its_name(tmp_path):
    # Kubernetes names launches by random ids.
    for name, started in {"f-first": 1.0, "a-last": 3.0, "z-second": 2.0}.items():
        LaunchFolder.of(tmp_path, name).write_launch(launch(name, started))
    folder, found = newest(tmp_path)
    assert (folder.path.name, found.id) == ("a-last", "a-last")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "x"}'])
def test_a_broken_note_is_passed_over(text, tmp_path):
    LaunchFolder.of(tmp_path, "good").write_launch(launch("good", 1.0))
    broken = LaunchFolder.of(tmp_path, "broken")
    broken.write_launch(launch("broken", 2.0))
    (broken.path / "launch.json").write_text(text)
    assert newest(tmp_path)[1].id == "good"


def test_a_folder_without_launches_is_a_mistake(tmp_path):
    with pytest.raises(
        ConfigError, match=r"has no launch of gradacc in it; name the run\.output_dir"
    ):
        newest(tmp_path)


def test_a_note_that_cannot_be_written_names_the_file(tmp_path):
    (tmp_path / "launches").write_text("in the way")
    with pytest.raises(DiskError, match=r"launches/x/launch\.json: cannot be written"):
        LaunchFolder.of(tmp_path, "x").write_launch(launch("x", 1.0))


def test_ids_differ_and_say_when():
    ids = [new_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert all(each[8] == "T" and each[:4].isdecimal() for each in ids)


def test_a_process_is_known_by_its_beginning():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        since = start_ticks(child.pid)
        assert since is not None
        assert since == start_ticks(child.pid)
        this = launch("x", 1.0, pid=child.pid, pid_began=since)
        assert is_alive(this)
        # Another process that was given the same number.
        assert not is_alive(dataclasses.replace(this, pid_began=since - 1))
    finally:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert start_ticks(child.pid) is None, "a zombie runs no more"
        child.communicate()
    assert start_ticks(child.pid) is None


def test_a_name_with_brackets_and_spaces_hides_no_beginning(tmp_path):
    program = tmp_path / "a) b (c"
    program.symlink_to("/bin/cat")
    child = subprocess.Popen([str(program)], stdin=subprocess.PIPE)
    try:
        text = start_ticks(child.pid)
        assert text is not None
        assert text >= (start_ticks(os.getpid()) or 0)
    finally:
        child.communicate()
