"""What is asked of SLURM's programs, by stand-ins for them; tests/slurm asks the real ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradacc_dist.errors import ConfigError
from launcher import slurm
from launcher.cli import main
from launcher.launches import newest


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """The only folder in which programs are looked for, but for the shell's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def answers(programs: Path, name: str, answer: str = "", status: int = 0) -> Path:
    """A program that notes how it was called, and answers."""
    path, calls = programs / name, programs / f"{name}.calls"
    path.write_text(f"#!/bin/bash\necho \"$*\" >> '{calls}'\necho -n '{answer}'\nexit {status}\n")
    path.chmod(0o755)
    return calls


def test_the_state_of_a_job(programs):
    answers(programs, "squeue", "PENDING (Resources)\n")
    assert slurm.state("12") == "PENDING (Resources)"
    answers(programs, "squeue")
    assert slurm.state("12") is None


def test_a_job_that_slurm_has_forgotten_is_not_a_slurm_that_is_down(programs):
    answers(programs, "squeue", "Invalid job id specified", status=1)
    answers(programs, "scontrol", "Slurmctld(primary) at ctl is UP")
    assert slurm.state("12") is None
    answers(programs, "scontrol", "Slurmctld(primary) at ctl is DOWN", status=1)
    with pytest.raises(ConfigError, match=r"scontrol ping: .* is DOWN"):
        slurm.state("12")


def test_a_running_job_gets_sigterm_and_one_that_waits_is_taken_away(programs):
    calls = answers(programs, "scancel")
    answers(programs, "squeue", "RUNNING\n")
    assert "save and leave" in slurm.stop("12")
    answers(programs, "squeue", "PENDING\n")
    assert "taken out" in slurm.stop("12")
    answers(programs, "squeue")
    assert "ended already" in slurm.stop("12")
    assert calls.read_text().splitlines() == ["--batch --signal=TERM 12", "--state=PENDING 12"]


@pytest.mark.parametrize(("state", "may"), [("RUNNING\n", True), ("COMPLETING\n", False), ("", 0)])
def test_only_a_job_that_runs_may_be_put_back(programs, state, may):
    answers(programs, "squeue", state)
    assert slurm.may_requeue("12") == may


def test_a_slurm_that_is_away_for_a_moment_is_asked_again(programs, monkeypatch):
    monkeypatch.setattr(slurm, "PAUSE_SECONDS", 0.01)
    calls = answers(programs, "squeue")
    (programs / "squeue").write_text(
        f"#!/bin/bash\necho >> '{calls}'\nmapfile -t asked < '{calls}'\n"
        "[ ${#asked[@]} -gt 3 ] && echo RUNNING\n"
    )
    assert slurm.may_requeue("12")
    assert len(calls.read_text()) == 4


def test_but_not_for_ever(programs, monkeypatch):
    monkeypatch.setattr(slurm, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 0.1)
    answers(programs, "squeue", "Unable to contact slurm controller", status=1)
    with pytest.raises(ConfigError, match=r"no answer .* submit the run once more"):
        slurm.may_requeue("12")


def test_settings_of_the_user_do_not_change_what_is_read(programs, monkeypatch):
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    answers(programs, "squeue", "${SQUEUE_FORMAT}").parent.joinpath("squeue").write_text(
        '#!/bin/bash\necho "${SQUEUE_FORMAT:-unset}"\n'
    )
    assert slurm.state("12") == "unset"


def test_without_slurm_the_remedy_is_named(programs):
    with pytest.raises(ConfigError, match=r"squeue: no such program .* login node"):
        slurm.state("12")


def submit(output: Path, *words: str) -> int:
    size = ("--nodes", "2", "--ranks", "1", "--cpu")
    return main(["submit", "--slurm", *size, "--run.output_dir", str(output), *words])


def test_a_launch_is_noted_with_its_job(programs, tmp_path, capsys):
    calls = answers(programs, "sbatch", "12;west\n")
    assert submit(tmp_path / "run", "--sbatch", "--time=1:00:00") == 0
    folder, launch = newest(tmp_path / "run")
    assert (launch.kind, launch.job_id, launch.id) == ("slurm", "12", folder.path.name)
    script = folder.path / "job.sh"
    assert calls.read_text() == f"--parsable {script}\n"
    assert "#SBATCH --time=1:00:00\n" in script.read_text()
    assert "12" in capsys.readouterr().out


def test_what_sbatch_refuses_is_no_launch(programs, tmp_path, capsys):
    answers(programs, "sbatch", "invalid partition", status=1)
    assert submit(tmp_path / "run") == 10
    assert "invalid partition [exit status 1]" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        newest(tmp_path / "run")


def test_a_dry_run_prints_the_script_and_does_nothing(programs, tmp_path, capsys):
    assert submit(tmp_path / "run", "--dry-run") == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/bin/bash\n")
    assert not (tmp_path / "run").exists()
    (folder,) = [line.split()[-1] for line in script.splitlines() if "mkdir -p" in line]
    assert f"#SBATCH --output={folder}/log.txt\n" in script


def test_mistakes_are_all_told_before_anything_is_written(programs, tmp_path, capsys):
    flags = ("--schedule.stepz", "3", "--window.examples", "none")
    assert submit(tmp_path / "run", *flags) == 10
    said = capsys.readouterr().err
    assert "schedule.stepz" in said
    assert "window.examples" in said
    assert not (tmp_path / "run").exists()


def test_b14_there_is_time_to_save(programs, tmp_path, capsys):
    """After ranks that wait for each other as long as they may."""
    assert submit(tmp_path / "run", "--dry-run") == 0
    assert "--signal=B:TERM@600\n" in capsys.readouterr().out
    assert submit(tmp_path / "run", "--dry-run", "--grace", "299") == 10
    said = capsys.readouterr().err
    assert "--grace: got 299, but engine.timeout_seconds is 300" in said
    assert submit(tmp_path / "run", "--dry-run", "--grace", "300") == 0


def test_ranks_have_to_be_said(programs, tmp_path, capsys):
    assert main(["submit", "--slurm", "--run.output_dir", str(tmp_path / "run")]) == 10
    assert "--ranks" in capsys.readouterr().err


def test_a_run_that_is_in_the_queue_is_not_submitted_once_more(programs, tmp_path, capsys):
    answers(programs, "sbatch", "12\n")
    assert submit(tmp_path / "run") == 0
    answers(programs, "squeue", "PENDING (Priority)\n")
    assert submit(tmp_path / "run") == 10
    assert "a run going on: SLURM job 12, PENDING (Priority)" in capsys.readouterr().err
    answers(programs, "squeue")
    assert submit(tmp_path / "run") == 0


def test_the_environment_is_that_of_the_user(programs, tmp_path, monkeypatch):
    """sbatch carries it to the nodes: a virtual environment, HF_HOME, keys of trackers."""
    (programs / "sbatch").write_text(f"#!/bin/bash\necho $HF_HOME > '{tmp_path}/seen'\necho 12\n")
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setitem(os.environ, "HF_HOME", "/models")
    assert submit(tmp_path / "run") == 0
    assert (tmp_path / "seen").read_text() == "/models\n"
