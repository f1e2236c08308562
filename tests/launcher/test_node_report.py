"""What a node says of itself is what is so."""

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT

from gradacc_dist.config.load import load
from launcher import driver, gpus, limits
from launcher import report as reports
from launcher.plan import Layout

LAYOUT = Layout(2, "cpu", "because")


def of(output: Path, *flags: str, environ=None) -> reports.Report:
    said = ("--run.output_dir", str(output), "--data.cache_dir", str(output / "cache"), *flags)
    return reports.report(load(None, said, {}), LAYOUT, environ or {})


def fake_driver(folder: Path, monkeypatch, script: str) -> None:
    """A nvidia-smi before all others on the PATH."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_report_of_this_machine(tmp_path):
    mine = of(tmp_path / "out")
    assert mine.host == socket.gethostname()
    assert (mine.ranks, mine.device) == (2, "cpu")
    assert mine.versions["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    for package in ("torch", "accelerate", "transformers", "gradacc-dist"):
        assert mine.versions[package][0].isdecimal()
    free = os.statvfs(tmp_path)
    assert mine.output.free_bytes == pytest.approx(free.f_bavail * free.f_frsize, abs=10**9)
    assert mine.output.folder == str(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert mine.limits.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert mine.limits.cores == len(os.sched_getaffinity(0))


def test_a_report_imports_nothing_heavy():
    program = (
        "import sys; import launcher.doctor, launcher.report as r; r.versions(); r.code_sha256();"
        "print(sorted({'torch', 'numpy', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_settings_that_must_be_alike_differ_with_their_names(tmp_path):
    one, other = of(tmp_path / "a"), of(tmp_path / "b", "--track.sample_tokens", "3")
    assert one.config_sha256 == other.config_sha256
    assert one.settings == other.settings
    third = of(tmp_path / "a", "--window.examples", "24")
    assert third.config_sha256 != one.config_sha256
    differing = dict(third.settings.items() - one.settings.items())
    assert differing == {"window.examples": "24"}


def test_the_code_is_known_by_names_and_contents():
    files = {"a.py": b"1", "b.py": b"2"}
    whole = reports.sha256_of(files)
    assert whole == reports.sha256_of(dict(reversed(files.items())))
    for other in ({"a.py": b"1", "b.py": b"3"}, {"a.py": b"1", "c.py": b"2"}, {"a.py": b"1"}):
        assert reports.sha256_of(other) != whole
    assert len(reports.code_sha256()) == 64


def test_the_largest_checkpoint_so_far_is_what_needs_room(tmp_path):
    assert of(tmp_path).checkpoint_bytes is None
    for step, size in ((10, 700), (20, 300)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(size))
        (folder / "manifest.json").write_bytes(bytes(5))
    assert of(tmp_path).checkpoint_bytes == 705


@pytest.mark.parametrize(
    ("leads_to", "taken"),
    [
        ([], None),
        (["127.0.0.1"], "127.0.0.1"),
        (["203.0.113.7"], None),  # kept for documents: nobody's
        (["203.0.113.7", "127.0.0.1"], "127.0.0.1"),
    ],
)
def test_gloo_takes_the_first_address_that_is_the_nodes_own(tmp_path, monkeypatch, leads_to, taken):
    def lookup(host, port, **_):
        if not leads_to:
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in leads_to]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    mine = of(tmp_path, environ={"GLOO_SOCKET_IFNAME": "eth7"})
    assert (mine.addresses, mine.gloo_address) == (tuple(leads_to), taken)
    assert mine.gloo_interface == "eth7"


def test_limits_of_the_groups_of_processes_around(tmp_path, monkeypatch):
    """The least of the process's group and those around it, of both versions of cgroups."""
    root, mine = tmp_path / "groups", tmp_path / "mine"
    mine.write_text("4:memory:/job\n3:cpu,cpuacct:/job\n0::/outer/inner\n")
    for folder in ("outer/inner", "memory/job", "cpu/job"):
        (root / folder).mkdir(parents=True)
    monkeypatch.setattr(limits, "CGROUPS", root)
    monkeypatch.setattr(limits, "OF_THIS_PROCESS", mine)
    assert (limits.limits().cgroup_cores, limits.limits().cgroup_memory_bytes) == (None, None)
    (root / "outer/inner/cpu.max").write_text("max 100000\n")
    (root / "outer/cpu.max").write_text("250000 100000\n")
    (root / "outer/inner/memory.max").write_text("max\n")
    (root / "outer/memory.max").write_text("1048576\n")
    assert (limits.limits().cgroup_cores, limits.limits().cgroup_memory_bytes) == (2.5, 2**20)
    (root / "cpu/job/cpu.cfs_quota_us").write_text("50000\n")
    (root / "cpu/job/cpu.cfs_period_us").write_text("100000\n")
    (root / "memory/job/memory.limit_in_bytes").write_text("4096\n")
    assert (limits.limits().cgroup_cores, limits.limits().cgroup_memory_bytes) == (0.5, 4096)


ROWS = """cat <<END
0, GPU-aa1, NVIDIA H100 80GB HBM3, 81559, 4, 0, Not Active, Not Active
1, GPU-ab2, NVIDIA H100 80GB HBM3, 81559, 70000, 2, Active, Not Active
2, GPU-c, Tesla T4, 15360, 3, [N/A], Not Active, Active
END"""


def test_gpus_as_the_driver_tells(tmp_path, monkeypatch):
    fake_driver(tmp_path, monkeypatch, ROWS)
    found, fault = gpus.gpus({})
    assert fault is None
    assert found == (
        gpus.Gpu(0, "NVIDIA H100 80GB HBM3", 81559, 4, 0, ()),
        gpus.Gpu(1, "NVIDIA H100 80GB HBM3", 81559, 70000, 2, ("heat",)),
        gpus.Gpu(2, "Tesla T4", 15360, 3, None, ("the power supply",)),
    )


@pytest.mark.parametrize(
    ("names", "seen"),
    [
        ("1,0", [0, 1]),
        ("2,-1,0", [2]),
        ("", []),
        ("GPU-ab", [1]),
        ("MIG-GPU-ab2/1/0", [1]),
        ("MIG-0f3e", [0, 1, 2]),  # whose part, its name does not tell
    ],
)
def test_only_gpus_that_ranks_may_see_are_judged(tmp_path, monkeypatch, names, seen):
    fake_driver(tmp_path, monkeypatch, ROWS)
    found, _ = gpus.gpus({"CUDA_VISIBLE_DEVICES": names})
    assert [gpu.index for gpu in found] == seen


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Unable to determine the device handle' >&2; exit 9", "ended with 9: Unable to"),
        ("exit 1", "ended with 1: no message"),
        ("exec sleep 60", "has not answered for 1 s"),
    ],
)
def test_a_driver_in_trouble_is_told(tmp_path, monkeypatch, script, said):
    monkeypatch.setattr(driver, "LIMIT_SECONDS", 1)
    fake_driver(tmp_path, monkeypatch, script)
    found, fault = gpus.gpus({})
    assert found == ()
    assert said in fault


def test_no_driver_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.gpus({}) == ((), None)
