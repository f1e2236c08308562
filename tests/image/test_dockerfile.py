"""The Dockerfile and what it is made from, as far as can be seen without building it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from launching import ROOT
from requirements_of import require

DOCKER = ROOT / "docker"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_hadolint_finds_nothing():
    beside = str(Path(sys.executable).parent)
    program = shutil.which("hadolint", path=beside) or shutil.which("hadolint")
    require(program is not None, "there is no hadolint; it comes with the extra `test`")
    done = subprocess.run(
        [str(program), str(DOCKER / "Dockerfile")], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout


def requirements(*extras: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DOCKER / "requirements.py"), ",".join(extras)]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True)


@pytest.mark.parametrize("extras", [(), ("wandb",), ("wandb", "deepspeed")])
def test_requirements_are_those_of_the_project_and_the_extras(extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = project["dependencies"] + [each for extra in extras for each in EXTRAS[extra]]
    assert requirements(*extras).stdout.splitlines() == expected


def test_an_unknown_extra_ends_the_build_and_names_those_there_are():
    done = requirements("wandb", "deepsped")
    assert done.returncode != 0
    assert "'deepsped'" in done.stderr
    for extra in EXTRAS:
        assert extra in done.stderr
