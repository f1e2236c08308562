"""An engine that reduces otherwise than it promises is found before training (A1, A8, A9, A21)."""

import math
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from distributed.cases import Case
from distributed.product import build, shipped
from torch.distributed.fsdp import FSDPModule

from gradacc_dist.config.schema import Engine as EngineConfig
from gradacc_dist.engines import build as build_module
from gradacc_dist.engines import factor, replicated
from gradacc_dist.engines import fsdp2 as sharded
from gradacc_dist.engines.replicated import ReplicatedEngine
from gradacc_dist.errors import ConfigError, EngineError

CASE = Case((9,) * 4, (1.0,) * 4, window=4, steps=1, dtype="float32")


SOUND = replicated._reduce_to_sum


def _hook(change):
    """A communication hook for DDP that does `change(bucket)` before the sum."""

    def hook(
        reduced: set[int],
        bucket: dist.GradBucket,
    ) -> torch.futures.Future[torch.Tensor]:
        change(bucket)
        return SOUND(reduced, bucket)

    return patch.object(replicated, "_reduce_to_sum", hook)


def averaging():
    """What DDP does by itself."""
    return _hook(lambda bucket: bucket.buffer().div_(dist.get_world_size()))


def dividing_twice():
    return _hook(lambda bucket: bucket.buffer().div_(dist.get_world_size() ** 2))


def forgetting_rank_1():
    return _hook(lambda bucket: bucket.buffer().mul_(dist.get_rank() != 1))


def forgetting_a_parameter():
    """Only one small tensor is wrong, on one rank."""
    return _hook(lambda bucket: bucket.gradients()[-1].mul_(dist.get_rank() != 0))


def not_a_number():
    return _hook(lambda bucket: bucket.buffer().mul_(math.nan if dist.get_rank() == 1 else 1))


def not_reducing():
    def hook(
        reduced: set[int],
        bucket: dist.GradBucket,
    ) -> torch.futures.Future[torch.Tensor]:
        reduced.update(map(id, bucket.parameters()))
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    return patch.object(replicated, "_reduce_to_sum", hook)


def dividing_the_loss():
    """As accelerate does by gradient_accumulation_steps (A8)."""
    backward = ReplicatedEngine.backward
    return patch.object(ReplicatedEngine, "backward", lambda self, loss: backward(self, loss / 2))


def dividing_the_sums():
    """A wrapper around the module that scales what it returns."""
    forward = ReplicatedEngine.forward

    def scaled(self, batch):
        return {name: total / 2 for name, total in forward(self, batch).items()}

    return patch.object(ReplicatedEngine, "forward", scaled)


def keeping_the_last_micro_batch():
    @contextmanager
    def forgetful(self, *, last):
        self.discard()
        yield

    return patch.object(ReplicatedEngine, "micro_batch", forgetful)


def reducing_what_is_reduced():
    """DDP summing in each micro-batch all that it has accumulated."""

    @contextmanager
    def eager(self, *, last):
        yield

    return patch.object(ReplicatedEngine, "micro_batch", eager)


def averaging_shards():
    """What fully_shard does by itself."""
    return patch.multiple(
        FSDPModule,
        set_force_sum_reduction_for_comms=lambda *_: None,
        set_gradient_divide_factor=lambda *_: None,
    )


def averaging_one_block():
    units = sharded._units
    return patch.object(sharded, "_units", lambda module: list(units(module))[:-1])


@contextmanager
def changing_deepspeeds_loss(change):
    from deepspeed.runtime.engine import DeepSpeedEngine

    right = DeepSpeedEngine.backward
    wrong = lambda self, loss: right(self, change(loss))  # noqa: E731
    with patch.object(DeepSpeedEngine, "backward", wrong):
        yield


def halving():
    """A second division (A8)."""
    return changing_deepspeeds_loss(lambda loss: loss / 2)


def losing_rank_1():
    """A rank whose work never arrives (A9)."""
    return changing_deepspeeds_loss(lambda loss: loss * (dist.get_rank() != 1))


def accumulating_by_itself():
    """A gradient_accumulation_steps that reached DeepSpeed, which then divides by it (A8)."""
    settings = build_module.settings

    def divided(*args):
        return {**settings(*args), "gradient_accumulation_steps": 2}

    return patch.object(build_module, "settings", divided)


PLANTED = {
    averaging: ("ddp", "0.5 times", "averages over the ranks where it promised a sum"),
    dividing_twice: ("ddp", "0.25 times", "divides by the number of ranks twice"),
    forgetting_rank_1: ("ddp", "0.428571 times", "the gradients of rank 1 are left out"),
    forgetting_a_parameter: ("ddp", "0.571429 times", "the gradients of rank 0 are left out"),
    not_a_number: ("ddp", "nan times", "where 1 times is expected"),
    not_reducing: ("ddp", "0.428571 times", "rank 0 are all that is left"),
    dividing_the_loss: ("ddp", "0.5 times", "by the number of accumulated micro-batches"),
    dividing_the_sums: ("ddp", "0.5 times", "by the number of accumulated micro-batches"),
    keeping_the_last_micro_batch: ("ddp", "0.666667 times", "only the last micro-batch's"),
    reducing_what_is_reduced: ("ddp", "1.33333 times", "reduces again what earlier ones had"),
    averaging_shards: ("fsdp2", "0.5 times", "averages over the ranks where it promised a sum"),
    averaging_one_block: ("fsdp2", "micro-batches (model.layers.1.", "averages over the ranks"),
}


def config_of(name, reduce="auto"):
    if name.startswith("zero"):
        return shipped(name, reduce)
    return EngineConfig(name=name, reduce=reduce)


def build_planted(world, plant, name, reduce="window"):
    """Returns the error's text and whether every rank raises it alike. Collective."""
    with plant():
        try:
            build(world, CASE, config_of(name, reduce))
        except EngineError as error:
            return str(error), error.same_on_all_ranks, error.exit_code
    return "", None, None


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_fault_is_refused_and_named(pools, plant):
    name, *fragments = PLANTED[plant]
    results = pools[2].run(build_planted, plant, name)
    text, same, exit_code = results[0]
    assert text.startswith(f"engine {name} on 2 rank(s), engine.reduce: window: the gradients")
    for fragment in fragments:
        assert fragment in text
    assert (same, exit_code) == (True, 10)
    assert results[1] == results[0]


IN_DEEPSPEED = {
    "halving": (halving, "0.25 times"),
    "losing rank 1": (losing_rank_1, "0.214286 times"),
    "accumulating by itself": (accumulating_by_itself, "0.25 times"),
}


@pytest.mark.parametrize("fault", IN_DEEPSPEED)
@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3", "zero3_offload"])
def test_a_fault_in_deepspeed_is_refused(pools, name, fault):
    plant, measured = IN_DEEPSPEED[fault]
    for text, same, exit_code in pools[2].run(build_planted, plant, name, "auto"):
        assert text.startswith(f"engine {name[:5]} on 2 rank(s), engine.reduce: ")
        assert measured in text
        assert "where 0.5 times is expected (reduction factor 2)" in text
        assert (same, exit_code) == (True, 10)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64, 100, 1024, 4096])
def test_a_forgotten_rank_shows_at_any_number_of_ranks(ranks):
    """In float32, whose sum of all weights is exact; 8 roundings are 1e-6."""
    weights = [factor._weight(rank, ranks) for rank in range(ranks)]
    assert sum(weights) * sum(factor.TURNS) < 2**24 or ranks > 1024
    assert min(weights) / sum(weights) > 0.6 / ranks > 100 * 8 * 2**-23
    # Carried by bfloat16 without rounding.
    assert all(float(torch.tensor(weight).bfloat16()) == weight for weight in weights)


def measure(world, name, compute, case):
    """A sound engine: how long the measurement takes, and what it leaves. Collective."""
    with patch("gradacc_dist.engines.build.confirm_reduction_factor"):
        engine = build(world, case, config_of(name), compute)
    before = {name: value.clone() for name, value in engine.state_dict().items()}
    hooks = sum(len(p._backward_hooks or ()) for p in engine.module.parameters())
    factor.confirm_reduction_factor(engine, world)
    after = engine.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in engine.module.parameters())
    assert sum(len(p._backward_hooks or ()) for p in engine.module.parameters()) == hooks
    if name in ("ddp", "fsdp2"):  # DeepSpeed has hooks of its own
        assert not engine.module.model._forward_pre_hooks
    return engine.reduction_factor


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero1", "zero2_offload", "zero3"])
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_measuring_leaves_nothing_behind(pools, name, compute):
    factor = 2.0 if name.startswith("zero") else 1.0
    assert pools[2].run(measure, name, compute, CASE) == [factor, factor]


def build_frozen(world, name):
    """Returns the error's text."""
    frozen = Case((9,), (1.0,), window=1, steps=1, frozen=("model", "lm_head"))
    try:
        build(world, frozen, EngineConfig(name=name))
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["single", "fsdp2"])
def test_nothing_to_train_is_refused(pools, name):
    (text,) = pools[1].run(build_frozen, name)
    assert "no parameter of LlamaForCausalLM is to be trained" in text


def wrapped_type(world):
    with patch("torch.cuda.device_count", return_value=4):
        return type(build(world, CASE)._wrapped).__name__


def test_a21_data_parallel_is_never_used(pools):
    assert pools[1].run(wrapped_type) == ["ObjectiveModule"]
