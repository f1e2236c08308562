"""B12: what training has changed is carried from any engine and number of ranks to any other.

The saved state is the same by name, to the bit; and training goes on from it as if nothing had
happened: to the bit on the same layout, elsewhere to rounding. Gradients and moments are compared
by name, not only weights, which AdamW moves alike whatever the scale (DESIGN contract 7).
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from dataclasses import dataclass, field
from functools import cache
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from distributed.cases import Case, worst_error
from distributed.product import ListedTokens, case_windows
from distributed.test_engines import BFLOAT16, FLOAT32, SPECIAL_MODELS, USUAL_WEIGHTS
from distributed.test_exactness import mixed
from distributed.test_zero import FLOAT16, float16_on_cpu
from launching import DEEPSPEED_FILES

from gradacc_dist.config.schema import Engine as EngineConfig
from gradacc_dist.config.schema import Optimizer, Precision
from gradacc_dist.denominator import Denominator
from gradacc_dist.engines import build_engine
from gradacc_dist.engines.loss_scale import ScaleState
from gradacc_dist.errors import ConfigError
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.optim import build_optimizer
from gradacc_dist.step import accumulate
from gradacc_dist.windows import Assembler, agreed_windows

pytestmark = pytest.mark.cluster

RATE = 1e-3
ADAMW = Optimizer(learning_rate=RATE, betas=(0.8, 0.9), weight_decay=0.1)
MICRO_BATCH = 2
SAVED_AFTER = 3
# Uneven, with filler, and a window smaller than the ranks; the gradients' norms are around 0.5, so
# that some are clipped.
SIZES = (5, 2, 6, 7, 3, 6)
CLIPS = (None, 0.3, None, None, 0.3, None)
OTHER_SEED = 1000


@dataclass(frozen=True)
class Layout:
    ranks: int
    engine: dict = field(default_factory=dict)
    compute: str = "fp32"
    optimizer: Optimizer = ADAMW

    def __hash__(self):
        return hash(repr(self))


def zero(ranks, name, **other):
    return Layout(ranks, {"deepspeed": DEEPSPEED_FILES / f"{name}.json"}, **other)


def fsdp2(ranks, **settings):
    return Layout(ranks, {"name": "fsdp2", **settings})


DDP = Layout(2, {"name": "ddp"})
# In the order of the ring.
LAYOUTS = {
    "ddp": DDP,
    "single": Layout(1),
    "zero0": zero(2, "zero0"),
    "fsdp2, 4 ranks as 2 x 2": fsdp2(4, replicas=2),
    "zero1": zero(2, "zero1"),
    "fsdp2, one rank": fsdp2(1),
    "zero2": zero(2, "zero2"),
    "zero3, 4 ranks": zero(4, "zero3"),
    "fsdp2": fsdp2(2),
    "zero3": zero(2, "zero3"),
    "zero2, 4 ranks": zero(4, "zero2"),
    "fsdp2, offload": fsdp2(2, offload=True),
    "zero2_offload": zero(2, "zero2_offload"),
    "ddp, 4 ranks": Layout(4, {"name": "ddp"}),
    "zero3_offload": zero(2, "zero3_offload"),
    "zero1, one rank": zero(1, "zero1"),
}


@dataclass
class Leg:
    """The state at its start; then gradients and norms of its windows; and the state after them."""

    start: dict[str, torch.Tensor]
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    end: dict[str, torch.Tensor] = field(default_factory=dict)


def problem(**other) -> Case:
    """34 wide: no number of elements of a gain divides by 4 ranks."""
    case = mixed(sum(SIZES), window=1, steps=len(SIZES), seed=5)
    other = {"initializer_range": USUAL_WEIGHTS, "hidden": 34, "heads": 2} | other
    return dataclasses.replace(case, sizes=SIZES, dtype="float32", **other)


def state_of(engine):
    return {name: value.detach().cpu().clone() for name, value in engine.state()}


def build(world, case, layout):
    return build_engine(
        EngineConfig(**layout.engine),
        ObjectiveModule(case.model(), CausalLM()),
        lambda module: build_optimizer(layout.optimizer, module),
        world,
        Precision(compute=layout.compute),
        environ={},
    )


def run_leg(world, engine, case, first, end) -> Leg:
    """Windows `first` to `end` of the case. Collective."""
    leg = Leg(state_of(engine))
    tokens = ListedTokens(case.examples())
    assembler = Assembler(
        tokens, engine.module.objective, MICRO_BATCH, world.rank, world.ranks, "test"
    )
    windows = islice(case_windows(case), first, end)
    for turn, (local, agreement) in enumerate(agreed_windows(windows, assembler, world)):
        denominator = Denominator("window", agreement, local.num_micro_batches)
        accumulate(engine, local, denominator, case.seed, world)
        leg.gradients.append({n: g.cpu() for n, g in engine.gradients().items()})
        leg.norms.append(engine.update(RATE, CLIPS[first + turn]).grad_norm)
    leg.end = state_of(engine)
    return leg


def reported(world, legs) -> bytes:
    """Of the other ranks, which need not travel, the names alone. Pickled by hand: tensors that
    travel by themselves stay in memory that both sides write to."""
    return pickle.dumps(legs if world.rank == 0 else names_of(legs))


def names_of(legs):
    return [(list(leg.start), list(leg.end)) for leg in legs]


def run_source(world, case, layout):
    """Two legs: up to where the state is saved, and on from there. Collective."""
    engine = build(world, case, layout)
    ends = [0, SAVED_AFTER, len(SIZES)]
    return reported(world, [run_leg(world, engine, case, a, b) for a, b in pairwise(ends)])


def run_targets(world, case, layout, fresh, again=b""):
    """The second leg from each state of `fresh`, on engines that began elsewhere; then, on the last
    of them, which has been trained, one window from each state of `again`. Collective."""
    elsewhere = dataclasses.replace(case, seed=case.seed + OTHER_SEED)
    legs = []
    for saved in pickle.loads(fresh):
        engine = build(world, elsewhere, layout)
        given = pickle.dumps(saved)
        engine.load_state(saved)
        legs.append(run_leg(world, engine, case, SAVED_AFTER, len(SIZES)))
        assert_same_state(saved, pickle.loads(given), "training wrote into what was loaded")
    for saved in pickle.loads(again) if again else ():
        engine.load_state(saved)
        legs.append(run_leg(world, engine, case, SAVED_AFTER, SAVED_AFTER + 1))
    return reported(world, legs)


def on_all_ranks(pools, layout, function, *args) -> list[Leg]:
    """Rank 0's legs. The others saw the same names in the same order."""
    first, *others = map(pickle.loads, pools[layout.ranks].run(function, *args))
    for other in others:
        assert other == names_of(first)
    return first


@pytest.fixture(scope="module")
def source(pools):
    """The two legs of a case on a layout, run once."""

    @cache
    def run(case, layout):
        return on_all_ranks(pools, layout, run_source, case, layout)

    return run


def resumed(pools, case, layout, fresh, again=()):
    """Legs that began at the ends of these sources' first legs."""
    states = [pickle.dumps([first.end for first, _ in sources]) for sources in (fresh, again)]
    return on_all_ranks(pools, layout, run_targets, case, layout, *states)


def kinds(state):
    """Apart from each other: the weights (None), and each kind of optimizer state."""
    parted = {}
    for path, value in state.items():
        kind = path.partition("/")[0] if "/" in path else None
        parted.setdefault(kind, {})[path] = value
    return parted


def assert_same_state(got, expected, where):
    assert got.keys() == expected.keys(), where
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, f"{where}: {name}"
        assert torch.equal(got[name], value), f"{where}: {name}"


def assert_close(got, expected, tolerance, where):
    error, name = worst_error(got, {name: value.double() for name, value in expected.items()})
    assert error <= tolerance, f"{where}: {name} off by {error}"


def assert_goes_on(leg, truth, tolerance, where):
    """The same start, to the bit; and what follows, to the bit where `tolerance` is 0."""
    assert_same_state(leg.start, truth.start, f"{where}, when loaded")
    for turn, gradients in enumerate(leg.gradients):
        assert_close(gradients, truth.gradients[turn], tolerance, f"{where}, window {turn}")
    np.testing.assert_allclose(leg.norms, truth.norms[: len(leg.norms)], rtol=tolerance)
    if len(leg.norms) == len(truth.norms):
        ours, theirs = kinds(leg.end), kinds(truth.end)
        assert ours.keys() == theirs.keys(), where
        for kind, values in theirs.items():
            exact = tolerance == 0 or kind == "step"
            assert_close(ours[kind], values, 0 if exact else tolerance, f"{where}, at the end")


def round_trip(pools, source, case, layout, tolerance, other=None):
    """From the layout to itself, to DDP and from there."""
    other = other or dataclasses.replace(layout, ranks=2, engine=DDP.engine)
    ours, theirs = source(case, layout), source(case, other)
    itself, came = resumed(pools, case, layout, [ours, theirs])
    assert_goes_on(itself, ours[1], 0, f"{layout} to itself")
    assert_goes_on(came, theirs[1], tolerance, f"{other} to {layout}")
    (went,) = resumed(pools, case, other, [ours])
    assert_goes_on(went, ours[1], tolerance, f"{layout} to {other}")
    return ours


@pytest.mark.parametrize("name", LAYOUTS)
def test_b12_goes_on_under_any_other_layout(pools, source, name):
    """Itself and DDP into a fresh engine; both neighbours in the ring into one that was trained."""
    case, layout = problem(), LAYOUTS[name]
    ring = list(LAYOUTS)
    here = ring.index(name)
    before, after = ring[here - 1], ring[(here + 1) % len(ring)]
    origins = (name, "ddp", before, after)
    sources = [source(case, LAYOUTS[origin]) for origin in origins]
    legs = resumed(pools, case, layout, sources[:2], sources[2:])
    for origin, leg, (_, truth) in zip(origins, legs, sources, strict=True):
        # Gradients differ by at most twice the rounding of one run; measured 4e-7. Moments and
        # weights are sums of these and of what was equal.
        tolerance = 0 if origin == name else FLOAT32
        assert_goes_on(leg, truth, tolerance, f"{origin} to {name}")


def test_b12_goes_on_under_ddp_from_any_layout(pools, source):
    case = problem()
    sources = [source(case, layout) for layout in LAYOUTS.values()]
    legs = resumed(pools, case, DDP, sources)
    for name, leg, (_, truth) in zip(LAYOUTS, legs, sources, strict=True):
        assert_goes_on(leg, truth, 0 if name == "ddp" else FLOAT32, f"{name} to ddp")


PRECISE = {name: LAYOUTS[name] for name in ("zero1", "zero2", "zero3", "fsdp2")}


@pytest.mark.parametrize("name", PRECISE)
def test_lower_precision_goes_on_from_unrounded_weights(pools, source, name):
    """Copies in bf16 that were not made anew would give another model's gradients."""
    layout = dataclasses.replace(PRECISE[name], compute="bf16")
    round_trip(pools, source, problem(), layout, BFLOAT16)


@pytest.mark.parametrize("name", ["fsdp2", "zero0", "zero1", "zero3"])
def test_tied_and_frozen_parameters(pools, source, name):
    """Tied ones under the first of their names alone; frozen ones too are carried over."""
    case = problem(**SPECIAL_MODELS["tied and frozen blocks"])
    legs = round_trip(pools, source, case, LAYOUTS[name], FLOAT32)
    model = case.model()
    parameters = dict(model.named_parameters())
    assert case.tied
    assert "lm_head.weight" not in parameters
    assert list(legs[0].start) == list(parameters)
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    kept = {f"{key}/{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name in trained}
    assert legs[0].end.keys() == parameters.keys() | kept
    assert {float(legs[0].end[f"step/{name}"]) for name in trained} == {SAVED_AFTER}
    for name in parameters.keys() - set(trained):
        assert torch.equal(legs[1].end[name], parameters[name]), name


@pytest.mark.parametrize("name", ["zero1", "zero3"])
def test_frozen_parameters_that_the_arithmetic_rounds(pools, source, name):
    case = problem(**SPECIAL_MODELS["frozen, the first layer's input included"])
    layout = dataclasses.replace(LAYOUTS[name], compute="bf16")
    legs = round_trip(pools, source, case, layout, BFLOAT16)
    truth = case.model().get_parameter("model.embed_tokens.weight")
    assert torch.equal(legs[1].end["model.embed_tokens.weight"], truth)


MOMENTUM = Optimizer(name="sgd", learning_rate=RATE, momentum=0.9, weight_decay=0)
PLAIN = Optimizer(name="sgd", learning_rate=RATE, momentum=0, weight_decay=0)


SGD_CASES = [
    ("fsdp2", MOMENTUM, {"momentum_buffer"}),
    ("zero0", MOMENTUM, {"momentum_buffer"}),
    ("zero1", PLAIN, set()),
    ("zero2_offload", MOMENTUM, {"momentum_buffer"}),
    ("zero3", MOMENTUM, {"momentum_buffer"}),
]


@pytest.mark.parametrize(("name", "optimizer", "kept"), SGD_CASES)
def test_sgd(pools, source, name, optimizer, kept):
    layout = dataclasses.replace(LAYOUTS[name], optimizer=optimizer)
    legs = round_trip(pools, source, problem(), layout, FLOAT32)
    assert kinds(legs[0].end).keys() == {None, *kept}


@pytest.mark.parametrize(("stage", "offload"), [(0, False), (1, False), (3, True)])
def test_deepspeeds_own_adam(pools, source, tmp_path_factory, stage, offload):
    """To torch's AdamW, which counts steps in another way, and back."""
    path = tmp_path_factory.mktemp("own") / "deepspeed.json"
    content = {"zero_optimization": {"stage": stage}, "optimizer": {"type": "AdamW"}}
    if offload:
        content["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    path.write_text(json.dumps(content))
    # It differs from torch's in the 6th digit a step (DESIGN).
    legs = round_trip(pools, source, problem(), Layout(2, {"deepspeed": path}), 1e-4, DDP)
    assert {float(step) for step in kinds(legs[0].end)["step"].values()} == {SAVED_AFTER}


def first_state(world, case, layout):
    """The state before the first update, and a leg from it on what was trained. Collective."""
    saved = state_of(build(world, case, layout))
    engine = build(world, dataclasses.replace(case, seed=OTHER_SEED), layout)
    run_leg(world, engine, case, 0, 1)
    engine.load_state(saved)
    return reported(world, [Leg(saved), run_leg(world, engine, case, 0, SAVED_AFTER)])


@pytest.mark.parametrize("name", ["ddp", "zero0", "zero1", "zero3"])
def test_before_the_first_update_there_are_weights_only(pools, source, name):
    case, layout = problem(), LAYOUTS[name]
    saved, leg = on_all_ranks(pools, layout, first_state, case, layout)
    assert_same_state(saved.start, dict(case.model().named_parameters()), name)
    assert_goes_on(leg, source(case, layout)[0], 0, name)


def unevenly_stepped(world, case, layout, state):
    engine = build(world, case, layout)
    with pytest.raises(ConfigError, match="was stepped 3 times and") as error:
        engine.load_state(state)
    assert error.value.same_on_all_ranks


def test_deepspeed_refuses_unequal_counts_of_steps(pools, source):
    state = source(problem(), DDP)[0].end
    state = state | {"step/model.norm.weight": torch.tensor(2.0)}
    pools[2].run(unevenly_stepped, problem(), LAYOUTS["zero1"], state)


def run_in_float16(world, function, *args):
    with float16_on_cpu():
        return function(world, *args)


def scaled_lower(world, case, layout, saved):
    """A second leg under a loss scale of 2^10, and the scales it ended with. Collective."""
    engine = build(world, dataclasses.replace(case, seed=OTHER_SEED), layout)
    engine.load_state(pickle.loads(saved))
    engine.restore_loss_scale(ScaleState(2.0**10, 0))
    scale = engine.loss_scale
    leg = run_leg(world, engine, case, SAVED_AFTER, len(SIZES))
    return reported(world, [leg]), (scale, engine.loss_scale)


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_float16_goes_on_at_its_loss_scale(pools, source, name):
    case, layout = problem(), dataclasses.replace(LAYOUTS[name], compute="fp16")
    first, second = source(case, DDP)
    results = pools[2].run(run_in_float16, scaled_lower, case, layout, pickle.dumps(first.end))
    assert {scales for _, scales in results} == {(2.0**10, 2.0**10)}
    (leg,) = pickle.loads(results[0][0])
    assert_goes_on(leg, second, FLOAT16, f"ddp in fp32 to {name} in fp16")


def restored(world, case, layout):
    engine = build(world, case, layout)
    engine.restore_loss_scale(ScaleState(2.0**10, 0))
    return engine.loss_scale


def test_formats_without_a_loss_scale_ignore_it(pools):
    for name in ("ddp", "zero1", "fsdp2"):
        assert pools[2].run(restored, problem(), LAYOUTS[name]) == [None, None]
