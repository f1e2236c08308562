"""The batch script, as it was read and found good: tests/launcher/golden/slurm.sh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gradacc_dist.errors import ConfigError
from launcher.launches import LaunchFolder
from launcher.request import Nodes, Request
from launcher.slurm_script import batch_script

GOLDEN = Path(__file__).parent / "golden" / "slurm.sh"
FOLDER = LaunchFolder.of(Path('/runs/it\'s 50% "so"'), "20260101T000000-abc123")


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/our tools/bin/python")


def script(*options: str, folder=FOLDER, grace_seconds=120, **asked) -> str:
    settings = {"config": Path("/data/my run.yaml"), "ranks": 8, "nodes": Nodes(4, 4)} | asked
    return batch_script(Request(**settings), folder, options, grace_seconds)


def test_the_script_is_the_golden_one():
    flags = ("--run.output_dir", '/runs/it\'s 50% "so"', "--track.name", "$HOME `no`")
    made = script("--partition=large --time=1:00:00", "--comment='two words'", flags=flags)
    assert made == GOLDEN.read_text()
    checked = subprocess.run(["bash", "-n"], input=made, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def directives(made: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in made.splitlines() if "#SBATCH" in line]


def test_cpu_ranks_ask_for_no_gpu():
    assert "--gpus-per-node=8" in directives(script())
    assert not [line for line in directives(script(cpu=True)) if "gpu" in line]
    assert "--cpus-per-task=8" in directives(script(cpu=True))


def test_elastic_nodes_are_as_many_as_are_free():
    made = script(nodes=Nodes(2, 8))
    assert "--nodes=2-8" in directives(made)
    assert "--nodes" not in made.partition("$gradacc")[2]  # each node is told by NNODES


def test_the_time_to_save_is_that_of_signal_and_of_waiting_for_other_nodes():
    made = script(grace_seconds=600)
    assert "--signal=B:TERM@600" in directives(made)
    assert "--wait=600" in made


def test_options_of_the_user_come_last_and_win():
    assert directives(script("--nodes=3"))[-1] == "--nodes=3"


@pytest.mark.parametrize("line", ["", "time=1:00:00", "--time=1:00:00\nrm -rf /"])
def test_what_is_no_line_of_options_is_refused(line):
    with pytest.raises(ConfigError, match="--sbatch"):
        script(line)


@pytest.mark.parametrize("name", ["a\nb", "a\\b"])
def test_a_folder_that_slurm_cannot_log_to_is_refused(name):
    with pytest.raises(ConfigError, match=r"run\.output_dir"):
        script(folder=LaunchFolder.of(Path("/runs") / name, "id"))
