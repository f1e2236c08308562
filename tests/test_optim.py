"""Learning rate as a function of the number of updates; decay on matrices only (A22)."""

import pytest
import torch

from gradacc_dist.config.schema import Optimizer, Schedule
from gradacc_dist.optim import build_optimizer, learning_rate

PEAK = Optimizer(learning_rate=1.0)


def rates(**schedule) -> list[float]:
    settings = Schedule(**schedule)
    return [learning_rate(PEAK, settings, settings.steps, n) for n in range(settings.steps)]


def test_warm_up_starts_above_zero_and_ends_at_the_peak():
    assert rates(steps=6, warmup_steps=4, shape="constant") == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_ends_at_the_final_fraction():
    assert rates(steps=5, shape="linear", final_fraction=0.2) == pytest.approx(
        [1.0, 0.8, 0.6, 0.4, 0.2]
    )


def test_cosine_is_half_way_in_the_middle():
    assert rates(steps=5, shape="cosine", final_fraction=0.0)[2] == pytest.approx(0.5)
    assert rates(steps=5, shape="cosine", final_fraction=0.1)[-1] == pytest.approx(0.1)


def test_warmup_stable_decay_falls_only_at_the_end():
    made = rates(
        steps=10,
        warmup_steps=2,
        shape="warmup_stable_decay",
        decay_fraction=0.3,
        final_fraction=0.0,
    )
    assert made == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1, 0.5, 0])


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "warmup_stable_decay"])
def test_schedules_of_one_step_and_of_warm_up_alone(shape):
    assert rates(steps=1, shape=shape) == [1.0]
    assert rates(steps=2, warmup_steps=2, shape=shape) == [0.5, 1.0]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_vectors_are_not_decayed(name):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    module[0].weight.requires_grad_(True)
    optimizer = build_optimizer(Optimizer(name=name, weight_decay=0.5), module)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {n: decay[id(p)] for n, p in module.named_parameters()} == {
        "0.weight": 0.5,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }


def test_frozen_parameters_are_left_out():
    module = torch.nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    optimizer = build_optimizer(Optimizer(), module)
    assert [p for g in optimizer.param_groups for p in g["params"]] == [module.bias]
