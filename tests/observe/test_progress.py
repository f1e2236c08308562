from __future__ import annotations

import io
import math
import time
from collections.abc import Iterable

import pytest
from observe.records import eval_record, train_record
from rich.console import Console

from gradacc_dist.observe.ledger import Record, TrainRecord
from gradacc_dist.observe.progress import Progress, clock


@pytest.fixture(autouse=True)
def _capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


def shown(
    records: Iterable[Record], *, terminal: bool, width: int = 80, label: str | None = None
) -> str:
    """What is written for these records of a run of 300 steps, with a line every 70."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width)
    with Progress(300, 70, console, label) as progress:
        progress.note("[bold]a warning[/bold] longer than the terminal is wide " + "x" * 80)
        for record in records:
            if isinstance(record, TrainRecord):
                progress.step(record)
            else:
                progress.evaluation(record)
    return file.getvalue()


def test_plain_lines_at_the_first_step_the_cadence_and_the_last() -> None:
    lines = shown([train_record(step) for step in range(1, 301)], terminal=False).splitlines()
    note, *steps = lines
    assert note == "[bold]a warning[/bold] longer than the terminal is wide " + "x" * 80
    assert [line.split(" · ")[0] for line in steps] == [
        f"step {step}/300" for step in (1, 70, 140, 210, 280, 300)
    ]


def test_a_plain_line_tells_what_the_issue_asks() -> None:
    text = shown([train_record(120, 3.41249, 12_345, seconds=0.25)], terminal=False)
    # 180 steps left at the 0.25 s of the only step so far
    assert text.splitlines()[-1] == (
        "step 120/300 · loss 3.412 · supervised tokens 12,345 · 1,200 tokens/s · 0:45 left"
    )


def test_a_resumed_run_shows_its_first_step() -> None:
    assert "step 123/300" in shown([train_record(123), train_record(124)], terminal=False)


def test_skipped_steps_evaluations_and_nan_are_never_silent() -> None:
    records = [
        *(train_record(1), eval_record(1, math.nan)),
        train_record(2, math.nan, 0, skipped="zero_items"),
    ]
    first, evaluation, skipped = shown(records, terminal=False).splitlines()[1:]
    assert "step 1/300" in first
    assert evaluation == "evaluation at step 1 · loss NaN · supervised tokens 1,000 · 1:05"
    assert skipped.startswith("step 2/300 · loss NaN · supervised tokens 0 · ")
    assert skipped.endswith("skipped: zero_items")


def test_the_label_is_on_every_line_about_a_loss() -> None:
    records = [train_record(1), eval_record(1)]
    lines = shown(records, terminal=False, label="micro_batch_mean").splitlines()[1:]
    assert len(lines) == 2
    assert all(line.startswith("micro_batch_mean · ") for line in lines)
    assert "micro_batch_mean · 1/300" in shown(records, terminal=True, label="micro_batch_mean")


def test_without_a_terminal_there_are_no_control_codes() -> None:
    text = shown([train_record(1), eval_record(1), train_record(300)], terminal=False)
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_console_that_speaks_ascii_only_gets_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Progress(300, 50, Console(file=stream, force_terminal=False)) as progress:
        progress.step(train_record(1))
    stream.seek(0)
    assert stream.read().startswith("step 1/300 | loss 3.500 | ")


def test_a_terminal_gets_one_live_line_with_a_bar() -> None:
    records = [train_record(1), eval_record(1), train_record(120, 3.41249, 12_345)]
    text = shown(records, terminal=True)
    assert "\x1b[?25l" in text, "the cursor is hidden while the line lives"
    assert text.endswith("\x1b[?25h"), "and shown again"
    kept = [line.rpartition("\x1b[2K")[2] for line in text.split("\n")]  # after each clearing
    assert kept[1] == "evaluation at step 1 · loss 3.750 · supervised tokens 1,000 · 1:05"
    assert kept[2].startswith("120/300 · loss 3.412 · 12,345 supervised · 600 tokens/s · ")
    assert "━" in kept[2]
    assert len(kept) == 4, "two permanent lines, one live line, and what shows the cursor"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert shown([train_record(1)], terminal=True) == shown([train_record(1)], terminal=False)


def test_a_narrow_terminal_still_gets_one_line() -> None:
    text = shown([train_record(120)], terminal=True, width=40)
    assert text.split("\n")[-2].rpartition("\x1b[2K")[2].startswith("120/300 · loss 3.500 · ")


def test_time_left_counts_the_wall_clock_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each step says 0.5 s, but 2 s pass from one to the next; evaluation and loading take the rest.
    ends = iter([1000.0, 1002.0, 1004.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(ends))
    text = shown([train_record(1), train_record(2), train_record(70)], terminal=False)
    assert text.splitlines()[-1].endswith("7:40 left")  # 230 steps of 2 s


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
