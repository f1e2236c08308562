"""Windows without items (A11), values that are not finite (A12, B13): one decision everywhere."""

import dataclasses
import math

import pytest
import torch
from distributed.cases import Case
from distributed.product import ListedTokens, case_windows

from gradacc_dist.config.schema import Engine as EngineConfig
from gradacc_dist.config.schema import Optimizer
from gradacc_dist.engines import build_engine
from gradacc_dist.errors import GradaccError, NonFiniteError, ZeroItemsError
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.optim import build_optimizer
from gradacc_dist.step import StepSettings, micro_batch_seed, train_step
from gradacc_dist.windows import Assembler, agreed_windows

SKIP = StepSettings("window", 0, 1.0, on_zero_items="skip", on_non_finite="skip")
ERROR = dataclasses.replace(SKIP, on_zero_items="error", on_non_finite="error")

NO_ITEMS = Case((9,) * 4, (0.0,) * 4, window=4, steps=2)
FINE = Case((9,) * 4, (1.0,) * 4, window=4, steps=2)


class Poisoned(CausalLM):
    """Turns the loss (or, with `in_gradient`, only its gradient) bad in micro-batch 1."""

    def __init__(self, value: float, in_gradient: bool) -> None:
        self.value = value
        self.in_gradient = in_gradient

    def sums(self, model, batch):
        sums = super().sums(model, batch)
        if batch.index == 1 and self.in_gradient:
            sums["cross_entropy"].register_hook(lambda gradient: gradient * self.value)
        elif batch.index == 1:
            sums["cross_entropy"] = sums["cross_entropy"] * self.value
        return sums


def run(world, case, settings, objective):
    """Returns (outcomes, number of changed weights, error). Collective."""
    optimizer = Optimizer(name="sgd")
    engine = build_engine(
        EngineConfig(),
        ObjectiveModule(case.model(), objective),
        lambda module: build_optimizer(optimizer, module),
        world,
    )
    before = {name: value.clone() for name, value in engine.module.model.state_dict().items()}
    tokens = ListedTokens(case.examples())
    assembler = Assembler(tokens, objective, 1, world.rank, world.ranks, "test")
    outcomes, error = [], None
    try:
        for local, agreement in agreed_windows(case_windows(case), assembler, world):
            outcome = train_step(engine, local, agreement, settings, 0.1, world)
            if outcome.error is not None:
                raise outcome.error
            outcomes.append(outcome)
    except GradaccError as raised:
        error = raised
    after = engine.module.model.state_dict()
    changed = sum(not torch.equal(before[name], after[name]) for name in before)
    assert all(value.isfinite().all() for value in after.values())
    assert all(parameter.grad is None for parameter in engine.module.parameters()) or error
    return outcomes, changed, type(error), str(error)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a11_zero_items_are_skipped_and_named(pools, ranks):
    for outcomes, changed, error, _ in pools[ranks].run(run, NO_ITEMS, SKIP, CausalLM()):
        assert [outcome.skipped for outcome in outcomes] == ["zero_items"] * 2
        assert changed == 0
        assert error is type(None)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a11_zero_items_stop_by_default(pools, ranks):
    for outcomes, changed, error, text in pools[ranks].run(run, NO_ITEMS, ERROR, CausalLM()):
        assert (outcomes, changed, error) == ([], 0, ZeroItemsError)
        assert "step 1: none of the window's 4 examples has a supervised token" in text
        assert "--window.on_zero_items skip" in text


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("in_gradient", [False, True])
def test_b13_non_finite_windows_are_skipped_alike_everywhere(pools, ranks, value, in_gradient):
    objective = Poisoned(value, in_gradient)
    for outcomes, changed, error, _ in pools[ranks].run(run, FINE, SKIP, objective):
        assert [outcome.skipped for outcome in outcomes] == ["non_finite"] * 2
        assert changed == 0
        assert error is type(None)
        # A12: a bad loss is reported as it is.
        assert math.isfinite(outcomes[0].window_loss.loss) == in_gradient


@pytest.mark.parametrize("ranks", [1, 2])
def test_b13_non_finite_stops_by_default_and_names_the_rank(pools, ranks):
    results = pools[ranks].run(run, FINE, ERROR, Poisoned(math.nan, in_gradient=False))
    for outcomes, changed, error, text in results:
        assert (outcomes, changed, error) == ([], 0, NonFiniteError)
        assert f"the loss is nan (from rank {1 % ranks} of {ranks}" in text
        assert text == results[0][3]


def test_a_fine_run_changes_every_weight(pools):
    """The control: the checks above can fail."""
    outcomes, changed, *_ = pools[2].run(run, FINE, ERROR, CausalLM())[0]
    assert [outcome.skipped for outcome in outcomes] == [None, None]
    assert changed == len(FINE.model().state_dict())


def test_random_numbers_follow_the_micro_batch():
    seeds = {micro_batch_seed(*key) for key in [(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0)]}
    assert len(seeds) == 4
    assert micro_batch_seed(0, 1, 0) == micro_batch_seed(0, 1, 0)
