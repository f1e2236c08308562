"""Names and values for trackers."""

import dataclasses
import math

import pytest
from observe.records import eval_record, train_record

from gradacc_dist.observe.ledger import Term
from gradacc_dist.observe.metrics import Metrics


def test_a_step_has_every_value_under_its_name():
    assert Metrics().of(train_record(5, loss=2.5, supervised_tokens=100)) == {
        "train/loss": 2.5,
        "train/grad_norm": 1.25,
        "train/learning_rate": 3e-4,
        "train/epoch": 1,
        "train/num_tokens": 300,
        "train/examples_seen": 40,
        "train/supervised_tokens": 100,
        "train/denominator": 100,
        "train/skipped": 0,
        "throughput/tokens_per_second": 600.0,
        "throughput/padding_fraction": 0.25,
    }


def test_tokens_and_skipped_steps_are_counted_over_the_run():
    metrics = Metrics()
    steps = [metrics.of(train_record(n, skipped="zero_items" if n == 2 else None)) for n in (1, 2)]
    assert [step["train/num_tokens"] for step in steps] == [300, 600]
    assert [step["train/skipped"] for step in steps] == [0, 1]
    assert "train/grad_norm" not in steps[1]


def test_an_evaluation():
    values = Metrics().of(eval_record(3, loss=3.75))
    assert values == {"eval/loss": 3.75, "eval/supervised_tokens": 1000}


@pytest.mark.parametrize(("make", "kind"), [(train_record, "train"), (eval_record, "eval")])
def test_each_of_several_terms_has_its_own(make, kind):
    terms = {"cross_entropy": Term.over(40.0, 16), "z_loss": Term.over(1.0, 0)}
    values = Metrics().of(dataclasses.replace(make(), terms=terms))
    assert values[f"{kind}/terms/cross_entropy"] == 2.5
    assert values[f"{kind}/terms/z_loss_count"] == 0
    assert math.isnan(values[f"{kind}/terms/z_loss"])
    assert values.get("train/denominator", 16) == 16
