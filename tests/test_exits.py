"""How ranks note their beginning and end for a launcher."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gradacc_dist.errors import ConfigError, NonFiniteError
from gradacc_dist.exits import EXITS, noted, read_exits


def environ(folder: Path, rank: int = 0) -> dict[str, str]:
    return {EXITS: str(folder), "RANK": str(rank)}


def test_a_rank_that_runs_has_begun_and_not_ended(tmp_path):
    with noted(environ(tmp_path / "exits", 3)):
        (running,) = read_exits(tmp_path / "exits")
        assert (running.rank, running.pid) == (3, os.getpid())
        assert (running.ended, running.exit_code) == (None, None)
    (done,) = read_exits(tmp_path / "exits")
    assert done.exit_code == 0
    assert done.began == running.began <= done.ended
    assert done.error is None


def test_our_errors_are_noted_and_pass_through(tmp_path):
    with pytest.raises(ConfigError), noted(environ(tmp_path)):
        raise ConfigError("two lines\nof text")
    (note,) = read_exits(tmp_path)
    assert (note.exit_code, note.error, note.message) == (10, "ConfigError", "two lines\nof text")
    assert note.is_ours
    assert not note.is_echo


@pytest.mark.parametrize(("rank", "is_echo"), [(0, False), (1, True)])
def test_what_all_ranks_say_is_an_echo_on_all_but_the_first(rank, is_echo, tmp_path):
    with pytest.raises(NonFiniteError), noted(environ(tmp_path, rank)):
        raise NonFiniteError("nan", same_on_all_ranks=True)
    (note,) = read_exits(tmp_path)
    assert (note.exit_code, note.is_echo) == (22, is_echo)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3)])
def test_other_errors_are_noted_as_not_ours(error, tmp_path):
    with pytest.raises(type(error)), noted(environ(tmp_path)):
        raise error
    (note,) = read_exits(tmp_path)
    assert (note.exit_code, note.error, note.is_ours) == (1, type(error).__name__, False)


def test_a_killed_rank_leaves_that_it_began(tmp_path):
    program = (
        "import os, signal\nfrom gradacc_dist.exits import noted\n"
        "with noted():\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **environ(tmp_path)})
    assert done.returncode == -signal.SIGKILL
    (note,) = read_exits(tmp_path)
    assert note.ended is None


def test_nothing_is_noted_where_no_launcher_asks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with noted({"RANK": "0"}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_note_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "exits").write_text("a file is in the way")
    with noted(environ(tmp_path / "exits" / "try")):
        pass


def test_notes_are_read_in_their_order_and_broken_ones_passed_over(tmp_path):
    for rank in (1, 0):
        with noted(environ(tmp_path, rank)):
            pass
        (tmp_path / f"{rank}.json").write_bytes(
            next(tmp_path.glob(f"*-{os.getpid()}.json")).read_bytes()
        )
    next(tmp_path.glob(f"*-{os.getpid()}.json")).unlink()
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "torn.json").write_text('{"rank": 0, "ho')
    (tmp_path / "foreign.json").write_text("[]")
    (tmp_path / "new.partial").write_text("{}")
    assert [note.rank for note in read_exits(tmp_path)] == [1, 0]
    assert read_exits(tmp_path / "none") == []


def test_exits_import_no_torch():
    program = "import sys, gradacc_dist.exits; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n"
