"""What rank 0 shows before and after a run: two columns, without lines that need a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from gradacc_dist.observe.ledger import (
    EvalRecord,
    TrainRecord,
    comparison_label,
    read,
    show_loss,
)
from gradacc_dist.observe.progress import clock


def start_table(rows: Mapping[str, str]) -> Table:
    """What is about to run: the rows as given, in their order."""
    return titled_table("Run", rows)


def end_table(ledger_path: Path, outputs: Mapping[str, str], wall_seconds: float) -> Table:
    """What the run did, from its ledger, then where its outputs are.

    `wall_seconds`: from the start of the process, so more than the sum of the steps.
    Raises DataError for a damaged ledger.
    """
    records = list(read(ledger_path))
    train = [record for record in records if isinstance(record, TrainRecord)]
    evaluations = [record for record in records if isinstance(record, EvalRecord)]
    rows = _train_rows(train) if train else {"steps": "0"}
    if evaluations:
        rows["evaluation loss"] = _first_to_last([record.loss for record in evaluations])
    return titled_table("Done", {**rows, "wall time": clock(wall_seconds), **outputs})


def _train_rows(train: list[TrainRecord]) -> dict[str, str]:
    last = train[-1]
    skipped = Counter(record.skipped for record in train if record.skipped)
    input_tokens = sum(record.input_tokens for record in train)
    padded_tokens = sum(record.padded_tokens for record in train)
    tokens_per_second = _ratio(input_tokens, sum(record.seconds for record in train))
    padding = 1 - _ratio(input_tokens, padded_tokens)
    label = comparison_label(last.denominator)
    cut_examples = sum(record.truncated_examples for record in train)
    cut_tokens = sum(record.truncated_tokens for record in train)
    cut = f"{cut_examples:,} examples lost {cut_tokens:,} tokens to data.max_length"
    return {
        **({"denominator": label} if label else {}),
        "steps": f"{len(train):,}",
        **{f"skipped, {reason}": f"{times:,}" for reason, times in sorted(skipped.items())},
        "examples seen": f"{last.examples_seen:,}",
        "epochs begun": f"{last.epoch + 1:,}",
        "supervised tokens": f"{sum(record.supervised_tokens for record in train):,}",
        **({"truncated": cut} if cut_examples else {}),
        "train loss": _first_to_last([record.loss for record in train]),
        "tokens/s": f"{tokens_per_second:,.0f}",
        "padding": "NaN" if math.isnan(padding) else f"{padding:.1%}",
    }


def _first_to_last(losses: list[float]) -> str:
    return f"{show_loss(losses[0])} first, {show_loss(losses[-1])} last"


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan


def titled_table(title: str, rows: Mapping[str, str]) -> Table:
    """Two columns: a name, and what is said of it."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")  # a long path must stay whole
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table
