"""What a node offers: the driver is asked, and CUDA_VISIBLE_DEVICES narrows it."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from gradacc_dist.errors import ConfigError
from launcher import driver as asking
from launcher import limits, machine
from launcher.machine import this_machine

THREE = """\
GPU 0: NVIDIA H (UUID: GPU-a)
  MIG 1g.5gb Device 0: (UUID: MIG-GPU-a/1/0)
GPU 1: NVIDIA H (UUID: GPU-b)
GPU 2: NVIDIA H (UUID: GPU-c)
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A driver's program that lists what it is told to."""

    def install(listed: str, status: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


def test_gpus_are_counted_and_not_their_parts(driver):
    driver(THREE)
    found = this_machine({})
    assert found.num_gpus == 3
    assert found.host == socket.gethostname()
    assert 1 <= found.num_cores <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("visible", "num_gpus"),
    [
        ("0", 1),
        ("2,0", 2),
        ("0,1,2", 3),
        ("", 0),
        ("-1", 0),
        ("0,-1,1", 1),
        ("GPU-a,GPU-b", 2),
        ("0,1,2,3", 3),  # one more than there is
    ],
)
def test_only_visible_gpus_count(visible, num_gpus, driver):
    driver(THREE)
    assert this_machine({"CUDA_VISIBLE_DEVICES": visible}).num_gpus == num_gpus


def test_a_driver_that_fails_shows_none(driver):
    driver("NVIDIA-SMI has failed because it couldn't communicate with the driver\n", status=9)
    names = [path.name for path in Path("/dev").iterdir()]
    devices = [name for name in names if re.fullmatch(r"nvidia\d+", name)]
    assert this_machine({}).num_gpus == len(devices)


def test_a_machine_without_a_driver_has_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("launcher.machine.Path.glob", lambda self, pattern: iter(()))
    assert this_machine({"CUDA_VISIBLE_DEVICES": "0,1"}).num_gpus == 0


def test_a_driver_that_hangs_is_named_and_not_asked_where_no_gpu_is_wanted(tmp_path, monkeypatch):
    """As the kernel keeps it: SIGKILL does not end a program that waits within a driver."""
    pid, program = tmp_path / "pid", tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho $$ > {pid}\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(asking, "LIMIT_SECONDS", 2)
    monkeypatch.setattr(asking, "END_SECONDS", 0.1)
    assert this_machine({}, cpu=True).num_gpus == 0
    assert not pid.exists()
    left = []
    monkeypatch.setattr(asking.subprocess.Popen, "kill", lambda self: left.append(self))
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"nvidia-smi has not answered for 2 s.*--cpu"):
        this_machine({})
    assert time.monotonic() - started < 120
    (asked,) = left
    asked.send_signal(signal.SIGKILL)
    asked.wait()


@pytest.mark.parametrize(("quota", "num_cores"), [(None, 8), (2.5, 2), (0.5, 1), (64.0, 8)])
def test_cores_are_those_that_the_container_gets(quota, num_cores, monkeypatch):
    given = limits.Limits(8, quota, 1, None, None, None)
    monkeypatch.setattr(machine, "limits", lambda: given)
    assert this_machine({}, cpu=True).num_cores == num_cores


def test_threads_that_a_user_sets_are_known():
    assert this_machine({"OMP_NUM_THREADS": "3"}, cpu=True).threads == "3"
    assert this_machine({"OMP_NUM_THREADS": ""}, cpu=True).threads is None
