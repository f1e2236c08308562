"""The command line of `gradacc`: quick, honest about mistakes, and right about exit codes."""

import subprocess
import sys

import pytest
import yaml
from launching import run

from launcher.cli import main
from launcher.request import ENGINES

# What takes long to load. torch alone is seconds.
HEAVY = ("torch", "numpy", "pydantic", "yaml", "transformers", "accelerate", "rich", "matplotlib")
COMMANDS = ("train", "submit", "manifest", "status", "logs", "stop", "init")


def printed_modules(words: list[str], *modules: str) -> subprocess.CompletedProcess[str]:
    """Run `gradacc` and print on stderr which of `modules` it loaded."""
    program = (
        "import sys\nfrom launcher.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        f"print(sorted(set({modules!r}) & set(sys.modules)), file=sys.stderr)\nsys.exit(code)"
    )
    return run([sys.executable, "-c", program, *words])


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_p10_help_loads_nothing_heavy(words):
    done = printed_modules(words, *HEAVY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: gradacc")
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("words", [["train", "--check", "--cpu"], ["train", "--dry-run", "--cpu"]])
def test_looking_at_a_run_loads_no_torch(words):
    done = printed_modules(words, "torch", "numpy", "transformers", "accelerate")
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_help_names_every_command():
    done = run([sys.executable, "-m", "launcher", "--help"])
    for name in (*COMMANDS, "validate", "export"):
        assert f"\n    {name} " in done.stdout, name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--ranks", "0"], "--ranks: got 0; needs a number from 1"),
        (["train", "--ranks", "two"], "--ranks: got two"),
        (["train", "--nodes", "8:2"], "--nodes: got 8:2"),
        (["train", "--engine", "zero9"], "--engine: got zero9; there are ddp"),
        (["train", "--config"], "--config: expected one argument"),
        (["submit", "--local", "--check"], "gradacc train --check, with the same flags"),
        (["doctor", "--check"], "gradacc doctor: does not take --check"),
        (["init"], "DIR"),
        (["init", "a", "b"], "does not take b"),
        (["status", "--window.examples", "8"], "does not take --window.examples"),
        (["manifest", "--image", "x"], "--kubernetes"),
    ],
)
def test_c3_bad_usage_is_one_line_and_exit_10(words, told, capsys):
    assert main(words) == 10
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("ConfigError: ")
    assert told in printed.err


def test_an_unknown_engine_is_told_all_that_there_are(capsys):
    assert main(["train", "--engine", "zero9"]) == 10
    printed = capsys.readouterr().err
    assert all(name in printed for name in ENGINES)


@pytest.mark.parametrize("mode", ["--check", "--dry-run", "--cpu"])
def test_c3_all_mistakes_of_a_configuration_at_once_before_a_rank(mode, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("window:\n  exmaples: 8\nschedule:\n  steps: many\n")
    words = ["train", "--cpu", "--config", str(path), "--run.sed", "3"]
    assert main([*words, *({mode} - {"--cpu"})]) == 10
    printed = capsys.readouterr()
    assert printed.out == ""
    for told in ("run.yaml:2", "did you mean", "run.yaml:4", "--run.sed"):
        assert told in printed.err, told


def test_flags_may_look_like_anything(capsys):
    """What is not ours is the run's, also a value that begins as one of our flags does."""
    assert main(["train", "--cpu", "--check", "--track.name=--ranks", "--run.seed=7"]) == 0
    printed = capsys.readouterr().out
    assert "--ranks" in printed
    assert "--run.seed" in printed


def test_a_missing_file_is_named(tmp_path, capsys):
    assert main(["train", "--cpu", "--config", str(tmp_path / "no.yaml")]) == 10
    assert "no.yaml: there is no such file" in capsys.readouterr().err


def test_init_writes_what_train_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    assert "gradacc train --config mine/run.yaml" in capsys.readouterr().out
    path = tmp_path / "mine" / "run.yaml"
    assert yaml.safe_load(path.read_text())["run"]["output_dir"] == "runs/first"
    assert main(["train", "--cpu", "--config", str(path), "--check"]) == 0
    assert "runs/first" in capsys.readouterr().out
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_init_replaces_nothing(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("mine")
    assert main(["init", str(tmp_path)]) == 10
    assert f"{path} exists; name another folder, or remove it first" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_init_where_nothing_can_be_written_is_a_disk_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file" / "run")]) == 25
    assert "cannot be written" in capsys.readouterr().err


def test_init_says_what_to_do_with_a_folder_of_spaces(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my run's"]) == 0
    command = capsys.readouterr().out.partition("train with: ")[2]
    words = subprocess.run(
        ["bash"], input=f"printf '%s|' {command}", capture_output=True, text=True
    )
    assert words.stdout == "gradacc|train|--config|my run's/run.yaml|"


@pytest.mark.parametrize("name", ["validate", "export"])
def test_other_programs_are_forwarded_to_with_their_exit_code(name):
    done = run([sys.executable, "-m", "launcher", name, "--no.such", "x"])
    assert done.returncode == 10
    assert "Traceback" not in done.stderr
    shown = run([sys.executable, "-m", "launcher", name, "--help"])
    assert shown.returncode == 0
    assert f"gradacc_dist.{name}" in shown.stdout


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m launcher train --cpu --check | head -1"
    done = run(["bash", "-o", "pipefail", "-c", command])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
