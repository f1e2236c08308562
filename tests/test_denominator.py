"""Agreement before computing (contract 4), and the one divider."""

import dataclasses

import numpy as np
import pytest
import torch

from gradacc_dist.agreement import (
    Agreement,
    LocalCounts,
    agree_on_run,
    fingerprint,
    launch_agreement,
)
from gradacc_dist.data.order import Window
from gradacc_dist.denominator import Denominator
from gradacc_dist.errors import DisagreementError

WINDOW = Window(step=7, epoch=0, example_ids=np.arange(4), examples_seen=28)
HEALTHY = LocalCounts(fingerprint(WINDOW, "run"), 2, 10, 12, {"a": 3, "b": 2**52})


def agree(world, change_on_rank_1):
    local = HEALTHY
    if world.rank == 1:
        local = dataclasses.replace(local, **change_on_rank_1)
    try:
        return launch_agreement(WINDOW, local, world).wait()
    except DisagreementError as error:
        return str(error)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_counts_are_exact_sums_over_ranks(pools, ranks):
    expected = Agreement({"a": 3 * ranks, "b": 2**52 * ranks}, 10 * ranks, 12 * ranks, ranks)
    assert pools[ranks].run(agree, {}) == [expected] * ranks


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"fingerprint": 1}, "ids, configuration or data"),
        ({"num_turns": 3}, "number of micro-batches"),
    ],
)
def test_a17_a_rank_that_differs_is_named_on_every_rank(pools, change, what):
    texts = pools[4].run(agree, change)
    assert len(set(texts)) == 1
    assert f"step 7: {what}: the ranks disagree: rank 1 of 4 (host " in texts[0]
    assert "rank 2" not in texts[0]


def agree_on_runs(world):
    try:
        agree_on_run(f"run of rank {world.rank % 2}", world)
    except DisagreementError as error:
        return str(error)


def test_ranks_started_for_different_runs_part_before_any_model_is_wrapped(pools):
    texts = pools[2].run(agree_on_runs)
    assert texts[0] == texts[1]
    assert "configuration, data or code: the ranks disagree: rank 1 of 2" in texts[0]
    assert pools[1].run(agree_on_runs) == [None]


def test_the_fingerprint_tells_steps_ids_and_runs_apart():
    other_ids = dataclasses.replace(WINDOW, example_ids=np.arange(4)[::-1])
    other_step = dataclasses.replace(WINDOW, step=8)
    made = [fingerprint(w, "run") for w in (WINDOW, other_ids, other_step)]
    made.append(fingerprint(WINDOW, "other run"))
    assert len(set(made)) == 4
    assert max(made) < 2**48


def test_a3_each_term_is_divided_by_its_own_count():
    agreement = Agreement({"a": 4.0, "b": 10.0, "none": 0.0}, 0, 0, 2)
    sums = {"a": torch.tensor(2.0), "b": torch.tensor(5.0), "none": torch.tensor(0.0)}
    weights = {"a": 1.0, "b": 0.1, "none": 1.0}
    loss = Denominator("window", agreement, 3).loss(sums, {}, weights, reduction_factor=2.0)
    assert float(loss) == pytest.approx(2 * (2 / 4 + 0.1 * 5 / 10))


def test_micro_batch_mean_is_the_mean_of_means():
    denominator = Denominator("micro_batch_mean", Agreement({"a": 12.0}, 0, 0, 1), 2)
    means = [
        float(denominator.loss({"a": torch.tensor(total)}, {"a": count}, {"a": 1.0}, 1.0))
        for total, count in [(8.0, 2), (10.0, 10)]
    ]
    assert sum(means) == pytest.approx((8 / 2 + 10 / 10) / 2)
