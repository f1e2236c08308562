"""Synthetic records for the tests of what a run shows."""

from __future__ import annotations

import math
from pathlib import Path

from gradacc_dist.observe.ledger import EvalRecord, Ledger, Record, Term, TrainRecord


def train_record(
    step: int = 1,
    loss: float = 3.5,
    supervised_tokens: int = 100,
    *,
    seconds: float = 0.5,
    padded_tokens: int = 400,
    skipped: str | None = None,
    denominator: str = "window",
) -> TrainRecord:
    value = loss if supervised_tokens else math.nan
    return TrainRecord(
        step=step,
        epoch=(step - 1) // 4,
        examples_seen=8 * step,
        num_examples=8,
        example_ids_sha256="ab" * 32,
        loss=loss,
        terms={"causal_lm": Term(loss * supervised_tokens, supervised_tokens, value)},
        supervised_tokens=supervised_tokens,
        input_tokens=300,
        padded_tokens=padded_tokens,
        micro_batches=4,
        ranks=2,
        engine="ddp",
        denominator=denominator,
        reduction_factor=2.0,
        grad_norm=None if skipped else 1.25,
        learning_rate=3e-4,
        seconds=seconds,
        tokens_per_second=300 / seconds,
        skipped=skipped,
    )


def eval_record(step: int = 1, loss: float = 3.75) -> EvalRecord:
    return EvalRecord(
        denominator="window",
        step=step,
        loss=loss,
        terms={"causal_lm": Term(loss * 1000, 1000, loss)},
        num_examples=40,
        supervised_tokens=1000,
        seconds=65.0,
    )


def write_ledger(path: Path, *records: Record) -> Path:
    with Ledger(path) as ledger:
        for record in records:
            ledger.write(record)
    return path
