from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from observe.records import eval_record, train_record, write_ledger

from gradacc_dist.errors import DataError, DiskError
from gradacc_dist.observe.ledger import Ledger, Tail, Term, TrainRecord, read

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

WRITER = """
import itertools, sys
from dataclasses import replace
from pathlib import Path
from gradacc_dist.observe.ledger import Ledger, Term
from observe.records import train_record

terms = {f"term_{n}": Term(1 / 3, 7.0, 1 / 21) for n in range(40)}  # long lines tear more easily
with Ledger(Path(sys.argv[1])) as ledger:
    for step in itertools.count(1):
        ledger.write(replace(train_record(step), terms=terms))
"""


def test_records_round_trip_and_kind_comes_first(tmp_path: Path) -> None:
    records = [train_record(1, 1 / 3), eval_record(1), train_record(2, 0.1, skipped="zero_items")]
    path = write_ledger(tmp_path / "ledger.jsonl", *records)
    assert list(read(path)) == records
    assert [next(iter(json.loads(line).items())) for line in path.read_text().splitlines()] == [
        ("kind", "train"),
        ("kind", "eval"),
        ("kind", "train"),
    ]


def test_nan_is_written_and_read_as_nan(tmp_path: Path) -> None:
    record = replace(train_record(1, math.nan), terms={"causal_lm": Term(math.inf, 0, math.nan)})
    path = write_ledger(tmp_path / "ledger.jsonl", record)
    assert '"loss": NaN' in path.read_text()
    (again,) = read(path)
    assert math.isnan(again.loss)
    assert again.terms["causal_lm"].sum == math.inf
    assert math.isnan(again.terms["causal_lm"].value)


def test_a_killed_writer_leaves_whole_lines_but_for_the_last(tmp_path: Path) -> None:
    """The kernel may cut the write that a kill interrupts; opening the ledger cuts off the rest."""
    for attempt in range(3):
        path = tmp_path / f"{attempt}.jsonl"
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], env=ENVIRONMENT)
        deadline = time.monotonic() + 30
        while not path.exists() or path.stat().st_size < 200_000:
            assert time.monotonic() < deadline, "the writer wrote nothing"
            time.sleep(0.001)
        writer.kill()
        writer.wait()
        whole, _, torn = path.read_bytes().rpartition(b"\n")
        num_lines = whole.count(b"\n") + 1
        assert [record.step for record in read(path)] == list(range(1, num_lines + 1))
        with Ledger(path):
            assert path.read_bytes() == whole + b"\n", f"{torn!r} is left"


@pytest.mark.parametrize("num_writes", [1, 2, 3])
def test_a_kill_right_after_any_write_leaves_whole_lines(tmp_path: Path, num_writes: int) -> None:
    path = tmp_path / "ledger.jsonl"
    code = f"""
import os, signal
real_write, written = os.write, []
def deadly_write(file, data):
    written.append(real_write(file, data))
    if len(written) == {num_writes}:
        os.kill(os.getpid(), signal.SIGKILL)
    return written[-1]
os.write = deadly_write
{WRITER}"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=ENVIRONMENT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes().endswith(b"\n"), "the kill tore a line"
    assert [record.step for record in read(path)] == list(range(1, num_writes + 1))


def test_each_record_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    real_write = os.write

    def recording_write(file: int, data: memoryview) -> int:
        written.append(bytes(data))
        return real_write(file, data)

    monkeypatch.setattr(os, "write", recording_write)
    path = write_ledger(tmp_path / "ledger.jsonl", train_record(1), train_record(2))
    assert written == path.read_bytes().splitlines(keepends=True)


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real_write(file, data[:100]))
    path = write_ledger(tmp_path / "ledger.jsonl", train_record(1), train_record(2))
    assert list(read(path)) == [train_record(1), train_record(2)]


def test_a_full_disk_is_a_typed_error_and_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    code = (  # the limit stands for a disk that fills up within a line
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "from gradacc_dist.errors import DiskError\n"
        f"try:\n    exec({WRITER!r})\n"
        "except DiskError as error:\n    print(error); sys.exit(error.exit_code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == DiskError.exit_code == 25, done.stderr
    assert str(path) in done.stdout
    assert "File too large" in done.stdout
    content = path.read_bytes()
    assert content.endswith(b"\n"), "a part of a line is left"
    assert [record.step for record in read(path)] == list(range(1, content.count(b"\n") + 1))


def test_opening_cuts_off_a_torn_last_line(tmp_path: Path) -> None:
    path = write_ledger(tmp_path / "ledger.jsonl", train_record(1), train_record(2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert [record.step for record in read(path)] == [1], "the reader waits for the newline"
    write_ledger(path, train_record(2))
    assert path.read_bytes() == whole

    path.write_bytes(whole[:50])  # torn within the first line
    write_ledger(path, train_record(1), train_record(2))
    assert path.read_bytes() == whole


def test_opening_keeps_a_whole_ledger(tmp_path: Path) -> None:
    path = write_ledger(tmp_path / "ledger.jsonl", train_record(1))
    write_ledger(path, train_record(2))
    assert [record.step for record in read(path)] == [1, 2]


def test_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    path = write_ledger(tmp_path / "ledger.jsonl", train_record(1))
    line = json.loads(path.read_text())
    line["new"] = {"a": [1]}
    line["terms"]["causal_lm"]["weight"] = 1.0
    path.write_text(json.dumps(line) + "\n")
    assert list(read(path)) == [train_record(1)]


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (b'{"kind": "train", "step": 2', "Invalid JSON"),
        (b'{"kind": "eval", "step": "two"}', "eval.step"),
        (b'{"kind": "sample"}', "'sample'"),
        (b"\x00\x00\x00", "Invalid JSON"),
        (b"", "Invalid JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, damage: bytes, cause: str) -> None:
    path = write_ledger(tmp_path / "ledger.jsonl", train_record(1), train_record(3))
    first, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + b"\n" + last)
    records = read(path)
    assert next(records) == train_record(1)
    with pytest.raises(DataError) as caught:
        next(records)
    assert str(caught.value).startswith(f"{path}, line 2: not a ledger record: ")
    assert cause in str(caught.value)


def test_a_tail_gives_each_record_once_and_only_whole_lines(tmp_path: Path) -> None:
    path = write_ledger(tmp_path / "ledger.jsonl", train_record(1), eval_record(1))
    tail = Tail(path)
    assert list(tail.new_records()) == [train_record(1), eval_record(1)]
    assert list(tail.new_records()) == []
    line = write_ledger(tmp_path / "other.jsonl", train_record(2)).read_bytes()
    with path.open("ab") as file:
        file.write(line[:40])
    assert list(tail.new_records()) == []
    with path.open("ab") as file:
        file.write(line[40:] + b"{}\n")
    new = tail.new_records()
    assert next(new) == train_record(2)
    with pytest.raises(DataError, match=f"{path}, line 4"):
        next(new)


def test_a_missing_ledger_or_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "ledger.jsonl"
    with pytest.raises(DataError, match="No such file") as missing:
        list(read(path))
    assert str(path) in str(missing.value)
    with pytest.raises(DiskError, match="No such file") as unwritable:
        Ledger(path)
    assert str(path) in str(unwritable.value)


def test_reading_needs_neither_torch_nor_a_terminal_library() -> None:
    code = (
        "import sys, gradacc_dist.observe.ledger\n"
        "print({'torch', 'rich', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_a_train_record_has_the_fields_that_issue_2_promises() -> None:
    promised = (
        "kind step epoch examples_seen num_examples example_ids_sha256 loss terms "
        "supervised_tokens input_tokens padded_tokens micro_batches ranks engine "
        "reduction_factor grad_norm learning_rate seconds tokens_per_second skipped"
    )
    assert set(promised.split()) <= set(TrainRecord.__dataclass_fields__)
