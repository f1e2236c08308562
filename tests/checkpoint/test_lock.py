from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradacc_dist.checkpoint.lock import RunLock
from gradacc_dist.errors import ConfigError, DiskError

OWNER = """
import sys, time
from pathlib import Path
from gradacc_dist.checkpoint.lock import RunLock
with RunLock(Path(sys.argv[1])):
    {then}
    print("taken", flush=True)
    sys.stdin.read()
"""


def start_owner(folder: Path, then: str = "pass") -> subprocess.Popen:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=then), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout
    assert owner.stdout.readline() == "taken\n"
    return owner


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen]:
    with start_owner(tmp_path) as owner:
        yield owner
        owner.kill()


def test_b18_a_second_run_is_refused_and_the_owner_named(
    tmp_path: Path, owner: subprocess.Popen
) -> None:
    with pytest.raises(ConfigError) as caught:
        RunLock(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"run.output_dir: {tmp_path} is in use by another run: ")
    assert f"process {owner.pid} on {socket.gethostname()}, since 20" in message
    assert caught.value.exit_code == 10


def test_b18_the_lock_of_a_killed_owner_is_taken_over(
    tmp_path: Path, owner: subprocess.Popen
) -> None:
    owner.kill()
    owner.wait()
    with RunLock(tmp_path) as lock:
        assert lock.died is not None
        assert lock.died.pid == owner.pid
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
            RunLock(tmp_path)


def test_b18_an_owner_that_let_go_is_not_called_dead(
    tmp_path: Path, owner: subprocess.Popen
) -> None:
    owner.communicate()
    with RunLock(tmp_path) as lock:
        assert lock.died is None
    with RunLock(tmp_path) as lock:
        assert lock.died is None


def test_b18_a_forked_worker_that_outlives_its_run_does_not_keep_the_folder(
    tmp_path: Path,
) -> None:
    fork = "import os; child = os.fork()\n    if not child: "
    # By the worker itself: until fork returns in it, it may hold what it is about to let go.
    report = "Path(sys.argv[1], str(os.getpid())).touch(); time.sleep(30); os._exit(0)"
    with start_owner(tmp_path, fork + report) as owner:
        while not (reported := [path for path in tmp_path.iterdir() if path.name.isdecimal()]):
            time.sleep(0.01)
        owner.kill()
        owner.wait()
        worker = int(reported[0].name)
        try:
            os.kill(worker, 0)  # it is alive
            with RunLock(tmp_path) as lock:
                assert lock.died is not None
        finally:
            os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("content", ["", '{"host": "a", "p', "\0\0", "[]"])
def test_b18_an_owner_that_has_not_yet_written_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / ".lock"
    path.write_text(content)
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is in use by another run: an unknown owner"):
            RunLock(tmp_path)
    with RunLock(tmp_path) as lock:
        assert lock.died is None


def test_b18_a_file_system_without_locks_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(code: int) -> None:
        def fails(file: int, operation: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", fails)

    for code in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        flock(code)
        with pytest.raises(ConfigError, match=r"without locks .*Lustre: -o flock"):
            RunLock(tmp_path)
    flock(errno.EIO)
    with pytest.raises(DiskError, match="cannot be locked: Input/output error"):
        RunLock(tmp_path)


def test_b18_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"nowhere/\.lock: cannot be written: No such file"):
        RunLock(tmp_path / "nowhere")
