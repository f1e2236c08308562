"""DDP: what it would do wrong in silence is refused, and dropout follows the micro-batch."""

import types

import pytest
import torch
from distributed.cases import Case, worst_error
from distributed.product import run_case

from gradacc_dist.engines.replicated import wrap_in_ddp
from gradacc_dist.errors import ConfigError


class PartlyUsed(Case):
    """Its model has a parameter that no forward uses."""

    def model(self):
        model = super().model()
        model.unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        return model


class Dropping(Case):
    """Its model drops attention weights."""

    def model(self):
        model = super().model()
        model.config.attention_dropout = 0.5
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        return model


SETTINGS = {"lengths": (9, 20, 5, 14), "fractions": (1.0,) * 4, "window": 4, "steps": 2}


def refusal(world, case):
    try:
        run_case(world, case, 1)
    except ConfigError as error:
        return str(error)


def test_a_parameter_that_ddp_leaves_unreduced_stops_the_run(pools):
    """Its bucket would silently keep one rank's gradients."""
    texts = pools[2].run(refusal, PartlyUsed(**SETTINGS))
    assert texts[0] == texts[1]
    assert "did not reduce the gradients" in texts[0]
    assert "unused" in texts[0]
    assert pools[1].run(refusal, PartlyUsed(**SETTINGS)) == [None]


def test_dropout_is_the_same_on_any_number_of_ranks(pools):
    case = Dropping(**SETTINGS)
    one, two = (pools[ranks].run(run_case, case, 1)[0] for ranks in (1, 2))
    for ours, theirs in zip(one.gradients, two.gradients, strict=True):
        assert worst_error(ours, theirs)[0] < 1e-12
    plain = pools[1].run(run_case, Case(**SETTINGS), 1)[0]
    assert worst_error(one.gradients[0], plain.gradients[0])[0] > 0.01


def test_an_engine_other_than_the_one_asked_for_is_refused():
    """accelerate without a process group wraps nothing and says nothing."""
    world = types.SimpleNamespace(
        ranks=2,
        accelerator=types.SimpleNamespace(
            prepare_model=lambda module: module,
            distributed_type=types.SimpleNamespace(value="NO"),
        ),
    )
    with pytest.raises(ConfigError, match=r"ddp was asked for, but accelerate made Linear"):
        wrap_in_ddp(torch.nn.Linear(1, 1), world, set())
