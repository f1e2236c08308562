from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from observe.records import eval_record, train_record, write_ledger
from rich.console import Console
from rich.table import Table

from gradacc_dist.observe.tables import end_table, start_table


@pytest.fixture(autouse=True)
def _capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


def shown(table: Table, *, terminal: bool = False, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, force_terminal=terminal, width=width).print(table)
    return file.getvalue()


def rows(text: str) -> dict[str, str]:
    """Name and value of each row below the title."""
    pairs = [line.strip().split("  ", 1) for line in text.splitlines()[1:]]
    return {name: value.strip() for name, value in pairs}


def test_start_table_shows_the_rows_as_given() -> None:
    given = {"engine": "ddp [auto]", "window": "64 examples", "model": "llama :smile:"}
    assert list(rows(shown(start_table(given))).items()) == list(given.items())


def test_end_table_is_sums_over_counts(tmp_path: Path) -> None:
    # 900 input tokens in 5 s and 2,000 positions; means of the steps' own figures would give
    # 290 tokens/s and 41.7% padding.
    path = write_ledger(
        tmp_path / "ledger.jsonl",
        train_record(1, 9.25, 1000, seconds=0.5, padded_tokens=400),
        eval_record(1, 8.5),
        train_record(2, math.nan, 0, seconds=2.0, padded_tokens=1200, skipped="zero_items"),
        train_record(5, 4.125, 2000, seconds=2.5, padded_tokens=400),
        eval_record(5, 4.75),
    )
    assert rows(shown(end_table(path, {"model": "runs/demo/model"}, 125.0))) == {
        "steps": "3",
        "skipped, zero_items": "1",
        "examples seen": "40",
        "epochs begun": "2",
        "supervised tokens": "3,000",
        "train loss": "9.250 first, 4.125 last",
        "tokens/s": "180",  # 900 / 5
        "padding": "55.0%",  # 1 - 900 / 2000
        "evaluation loss": "8.500 first, 4.750 last",
        "wall time": "2:05",
        "model": "runs/demo/model",
    }


def test_end_table_of_an_empty_ledger_and_of_skips_only(tmp_path: Path) -> None:
    path = write_ledger(tmp_path / "ledger.jsonl")
    assert rows(shown(end_table(path, {}, 1.0))) == {"steps": "0", "wall time": "0:01"}
    write_ledger(path, train_record(1, math.nan, 0, padded_tokens=0, skipped="zero_items"))
    table = rows(shown(end_table(path, {}, 1.0)))
    assert table["train loss"] == "NaN first, NaN last"
    assert table["padding"] == "NaN"


def test_the_wrong_denominator_is_labelled(tmp_path: Path) -> None:
    path = write_ledger(tmp_path / "ledger.jsonl", train_record(denominator="micro_batch_mean"))
    table = rows(shown(end_table(path, {}, 1.0)))
    assert table["denominator"] == "micro_batch_mean: the historical bug, for comparison"


def test_without_a_terminal_a_table_is_ascii_and_long_paths_stay_whole(tmp_path: Path) -> None:
    path = write_ledger(tmp_path / "ledger.jsonl", train_record(), eval_record())
    output = "/" + "folder/" * 30
    text = shown(end_table(path, {"model": output}, 1.0))
    assert text.isascii()
    assert "\x1b" not in text
    assert output in "".join(text.split())
    assert "\x1b[" in shown(start_table({"a": "b"}), terminal=True)
