"""`gradacc doctor` on one node: a line for each item, what is wrong below it, the exit code."""

import subprocess
import sys
from dataclasses import replace

from launching import ROOT, environment
from node_reports import HEALTHY, healthy, nodes_of

from launcher.doctor import folder_of_launches, lines_of, shown, table
from launcher.findings import Finding, findings
from launcher.gpus import Gpu
from launcher.rollmessages import Meeting


def doctor(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", "doctor", *words],
        cwd=ROOT,
        env=environment() | variables,
        text=True,
        capture_output=True,
        timeout=120,
    )


def test_one_rank_on_one_node():
    done = doctor("--cpu")
    assert done.returncode == 0, done.stderr
    assert "ok       versions       python 3." in done.stdout
    assert "there is no link to measure" in done.stdout
    assert "error" not in done.stdout.lower().replace("ecc errors", "")


def test_a_mistake_in_the_configuration_is_told_at_once():
    done = doctor("--window.exmaples", "3")
    assert done.returncode == 10
    assert "window.exmaples" in done.stderr


def test_nodes_that_come_and_go_are_not_for_the_doctor():
    done = doctor("--nodes", "1:2", MASTER_ADDR="localhost")
    assert done.returncode == 10
    assert "--nodes 1:2" in done.stderr


def test_errors_end_with_10_and_are_in_the_table():
    """Files: the one limit that a test can lower for its child alone."""
    words = [sys.executable, "-m", "launcher", "doctor", "--cpu"]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 200 && exec "$@"', "sh", *words],
        cwd=ROOT,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 10, done.stderr
    assert "error    limits         200 open files" in done.stdout
    assert "200 open files allowed, 1 ranks need 260; raise the limit: ulimit -n 520" in done.stderr
    assert "bandwidth" not in done.stdout


def test_what_nodes_meet_by_is_not_left_behind(tmp_path):
    output = tmp_path / "runs" / "a"
    with folder_of_launches(output, is_first=True):
        assert (output / "launches").is_dir()
    assert list(tmp_path.iterdir()) == []
    with folder_of_launches(output, is_first=False):
        assert not output.exists()
    (output / "launches" / "one").mkdir(parents=True)
    with folder_of_launches(output, is_first=True):
        pass
    assert (output / "launches" / "one").is_dir()


def test_what_is_found_stands_below_its_item():
    found = [
        Finding("warning", "n1", "b", "slow", "wait"),
        Finding("error", "n1", "b", "broken", "mend it"),
        Finding("warning", "n1", "clock", "late", "set it"),
    ]
    assert table({"a": "1", "b": "2"}, found).splitlines() == [
        "  ok       a              1",
        "  error    b              2",
        " " * 26 + "slow; wait",
        " " * 26 + "broken; mend it",
        "  warning  clock",
        " " * 26 + "late; set it",
    ]


def test_a_table_for_each_node_with_its_own_findings():
    nodes = nodes_of(healthy("n1"), healthy("n2", ranks=4), clocks=(0.0, 1.25))
    lines = shown(Meeting(tuple(findings(nodes)), nodes)).splitlines()
    first, second = (
        next(i for i, line in enumerate(lines) if line.startswith(f"n{n}, ")) for n in (1, 2)
    )
    assert lines[second] == "n2, clock +1.25 s"
    (error,) = (i for i, line in enumerate(lines) if line.startswith("  error"))
    assert first < second < error
    assert lines[error].split() == ["error", "ranks", "4", "on", "CPU"]


def test_gpus_have_a_line_each():
    lines = lines_of(replace(HEALTHY, gpus=(Gpu(1, "H100", 81559, 4, None, ()),)))
    assert lines["GPU 1"] == "H100: 4 of 81,559 MiB used, ECC errors not counted"
    assert "GPUs" not in lines
    assert lines_of(HEALTHY)["GPUs"] == "none"
    assert lines_of(replace(HEALTHY, gpu_fault="no answer"))["GPUs"] == "no answer"
