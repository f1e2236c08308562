"""From what is asked to one command: equal to golden files, and the same words after a shell."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from expected import assert_golden

from gradacc_dist.errors import ConfigError
from launcher import cli
from launcher.machine import Machine
from launcher.place import Place
from launcher.plan import Command, Layout, layout_of, plan
from launcher.request import SHIPPED, Nodes, Request

LAPTOP = Machine("laptop", num_gpus=0, num_cores=8)
BOX = Machine("box", num_gpus=4, num_cores=32)
HERE = Place(0, "localhost", 0)
SECOND = Place(1, "n1", 29501, ("n1", "n2"))
RUN = Path("run.yaml")
EXITS = Path("runs/x/launches/id-1/exits/try-1")

AWKWARD = (
    "two words",
    "it's",
    'say "hi"',
    "$HOME `id` $(id) ${x} !! \\",
    "line\nbreak",
    "tab\t* ? [a] {b,c} ~ # ; & | < >",
    "é 日本",
    "",
)

CASES = {
    "single_cpu": (Request(RUN), LAPTOP, HERE),
    "single_gpu": (Request(RUN, ranks=1), BOX, HERE),
    "two_cpu_ranks": (Request(RUN, ranks=2), LAPTOP, HERE),
    "cpu_ranks_beside_gpus": (Request(RUN, ranks=2, cpu=True), BOX, HERE),
    "four_gpus": (Request(RUN, engine="fsdp2"), BOX, HERE),
    "two_nodes_zero2": (Request(RUN, nodes=Nodes(2, 2), engine="zero2"), BOX, SECOND),
    "two_nodes_cpu": (Request(RUN, nodes=Nodes(2, 2)), LAPTOP, SECOND),
    "elastic": (Request(RUN, nodes=Nodes(2, 8)), BOX, Place(None, "n1", 29500)),
    "elastic_cpu": (Request(RUN, nodes=Nodes(1, 2), ranks=2), LAPTOP, Place(None, "n1", 29500)),
    "awkward": (Request(Path("my run's.yaml"), ("--track.name", *AWKWARD)), LAPTOP, HERE),
}


def command_of(case: str) -> Command:
    request, machine, place = CASES[case]
    return plan(request, machine, place, "id-1", EXITS)


@pytest.mark.parametrize("case", CASES)
def test_commands_are_the_golden_files(case):
    text = f"{command_of(case)}\n"
    places = {str(SHIPPED): "CONFIGS", str(Path(sys.executable).parent): "BIN"}
    for path, placeholder in places.items():
        text = text.replace(path, placeholder)
    assert_golden(f"commands/{case}.sh", text)


# By hand.

PRINTER = f"""\
#!{sys.executable}
import json, os, sys
wanted = ("GRADACC", "OMP", "TORCH", "CUDA")
environ = {{name: value for name, value in os.environ.items() if name.startswith(wanted)}}
print(json.dumps([sys.argv[1:], environ]))
"""


def fake(folder: Path, *names: str) -> Path:
    """Programs that print what they were called with."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(PRINTER)
        (folder / name).chmod(0o755)
    return folder


def by_a_shell(text: str, shell: str) -> tuple[list[str], dict[str, str]]:
    """Words and variables that arrive where `text` is typed into a shell."""
    environ = {"PATH": os.environ["PATH"], "HOME": "/"}
    done = subprocess.run([shell], input=text, text=True, capture_output=True, env=environ)
    assert done.returncode == 0, done.stderr
    words, variables = json.loads(done.stdout)
    return words, variables


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("case", CASES)
def test_a_printed_command_means_the_same_in_a_shell(case, shell, tmp_path, monkeypatch):
    folder = fake(tmp_path / "it's a bin", "python")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    command = command_of(case)
    assert Path(command.argv[0]).parent == folder
    words, variables = by_a_shell(str(command), shell)
    assert words == list(command.argv[1:])
    assert variables == dict(command.environ)


def test_values_of_variables_survive_a_shell(tmp_path):
    program = fake(tmp_path / "bin", "python") / "python"
    environ = {f"GRADACC_{number}": text for number, text in enumerate(AWKWARD)}
    _, variables = by_a_shell(str(Command((str(program),), environ)), "bash")
    assert variables == environ


# --dry-run.


@pytest.fixture
def bare(monkeypatch):
    """No word of nodes and launches in the environment."""
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"PET_{name}", raising=False)
    for name in ("GRADACC_LAUNCH_ID", "GRADACC_ATTEMPT", "GRADACC_NODES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def printing(bare, tmp_path, monkeypatch):
    """Where the programs that would start ranks print what they are called with."""
    folder = fake(tmp_path / "bin", "python")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_prints_what_can_be_typed_and_leaves_nothing(printing, capsys):
    words = ["--cpu", "--ranks", "2", "--track.name", "a $(b) 'c'"]
    assert cli.main(["train", "--dry-run", *words]) == 0
    argv, variables = by_a_shell(capsys.readouterr().out, "bash")
    assert argv[-3:] == ["gradacc_dist.train", "--track.name", "a $(b) 'c'"]
    exits = Path(variables["GRADACC_EXITS"])
    assert exits.parts[-4:-2] == ("launches", variables["GRADACC_LAUNCH_ID"])
    assert exits.is_relative_to(printing / "runs" / "demo")
    assert [path.name for path in printing.iterdir()] == ["bin"]


def test_a_dry_run_of_several_nodes_prints_the_command_of_each(printing, monkeypatch, capsys):
    monkeypatch.setenv("MASTER_ADDR", "n1")
    monkeypatch.setenv("GRADACC_NODES", "n1,n2,n3")
    assert cli.main(["train", "--dry-run", "--cpu", "--nodes", "3"]) == 0
    parts = capsys.readouterr().out.split("# on ")[1:]
    assert [part.partition(",")[0] for part in parts] == ["n1", "n2", "n3"]
    seen = [by_a_shell(f"# on {part}", "bash") for part in parts]
    ranks = [words[words.index("--machine_rank") + 1] for words, _ in seen]
    assert ranks == ["0", "1", "2"]
    assert len({variables["GRADACC_LAUNCH_ID"] for _, variables in seen}) == 1


def test_a_dry_run_that_knows_its_node_prints_that_one(printing, monkeypatch, capsys):
    monkeypatch.setenv("MASTER_ADDR", "n1")
    monkeypatch.setenv("NODE_RANK", "1")
    assert cli.main(["train", "--dry-run", "--cpu", "--nodes", "3"]) == 0
    words, _ = by_a_shell(capsys.readouterr().out, "bash")
    assert words[words.index("--machine_rank") + 1] == "1"


def test_a_dry_run_of_several_nodes_needs_the_first_ones_name(printing, capsys):
    assert cli.main(["train", "--dry-run", "--cpu", "--nodes", "3"]) == 10
    told = capsys.readouterr()
    assert told.out == ""
    assert "MASTER_ADDR is not set" in told.err
    assert "NODE_RANK" not in told.err


def test_a_dry_run_refuses_what_a_run_would(printing, capsys):
    assert cli.main(["train", "--dry-run", "--cpu", "--window.exampels", "8"]) == 10
    told = capsys.readouterr()
    assert told.out == ""
    assert "did you mean --window.examples?" in told.err


# How many ranks.


@pytest.mark.parametrize(
    ("request_", "machine", "ranks", "device"),
    [
        (Request(), LAPTOP, 1, "cpu"),
        (Request(), BOX, 4, "gpu"),
        (Request(cpu=True), BOX, 1, "cpu"),
        (Request(ranks=2), BOX, 2, "gpu"),
        (Request(ranks=6), LAPTOP, 6, "cpu"),
        (Request(ranks=6, cpu=True), BOX, 6, "cpu"),
    ],
)
def test_ranks_follow_the_machine_or_the_request(request_, machine, ranks, device):
    layout = layout_of(request_, machine)
    assert (layout.ranks, layout.device) == (ranks, device)
    assert layout.total(3) == 3 * ranks


def test_more_ranks_than_gpus_are_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"6 ranks on each node, but box shows 4 GPU\(s\).*--cpu"):
        plan(Request(ranks=6), BOX, HERE, "id", EXITS)


@pytest.mark.parametrize(("ranks", "threads"), [(1, "8"), (2, "4"), (3, "2"), (16, "1")])
def test_cpu_ranks_share_the_cores(ranks, threads):
    command = plan(Request(ranks=ranks), LAPTOP, HERE, "id", EXITS)
    assert command.environ["OMP_NUM_THREADS"] == threads


def test_threads_that_a_user_sets_stay():
    machine = dataclasses.replace(LAPTOP, threads="3")
    assert plan(Request(ranks=2), machine, HERE, "id", EXITS).environ["OMP_NUM_THREADS"] == "3"


def test_every_shipped_file_that_a_plan_names_exists():
    for case in CASES:
        for word in command_of(case).argv:
            if word.startswith(str(SHIPPED)):
                assert Path(word).is_file(), word


def test_a_plan_is_a_pure_function():
    assert command_of("two_nodes_zero2") == command_of("two_nodes_zero2")
    assert dataclasses.is_dataclass(Layout)
