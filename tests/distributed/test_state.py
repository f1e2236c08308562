"""B12: what training has changed is carried from any engine and number of ranks to any other.

The saved state is the same by name, to the bit; and training goes on from it as if nothing had
happened: to the bit on the same layout, elsewhere to rounding. Gradients and moments are compared
by name, not only weights, which AdamW moves alike whatever the scale (DESIGN contract 7).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from unittest.mock import patch

import numpy as np
import pytest
import torch
from distributed.cases import Case, worst_error
from distributed.product import ListedTokens, case_windows
from distributed.test_engines import BFLOAT16, FLOAT32, USUAL_WEIGHTS
from distributed.test_exactness import mixed
from distributed.test_zero import CONFIGS, float16_on_cpu

from gradacc_dist.config.schema import Engine as EngineConfig
from gradacc_dist.config.schema import Optimizer, Precision
from gradacc_dist.denominator import Denominator
from gradacc_dist.engines import build_engine
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.optim import build_optimizer
from gradacc_dist.step import accumulate
from gradacc_dist.windows import Assembler, agreed_windows

RATE = 1e-3
ADAMW = Optimizer(learning_rate=RATE, betas=(0.8, 0.9), weight_decay=0.1)
MICRO_BATCH = 2
SAVED_AFTER = 3
# Uneven, with filler, and a window smaller than the ranks; the gradients' norms are around 0.5, so
# that some are clipped.
SIZES = (5, 9, 4, 7, 3, 10)
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
    return Layout(ranks, {"deepspeed": CONFIGS / f"{name}.json"}, **other)


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
    "zero1, 4 ranks": zero(4, "zero1"),
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


def on_rank_0(world, leg):
    """Of the other ranks, which need not travel, the names alone."""
    return leg if world.rank == 0 else (list(leg.start), list(leg.end))


def run_source(world, case, layout):
    """Two legs: up to where the state is saved, and on from there. Collective."""
    engine = build(world, case, layout)
    legs = [
        run_leg(world, engine, case, 0, SAVED_AFTER),
        run_leg(world, engine, case, SAVED_AFTER, len(SIZES)),
    ]
    return [on_rank_0(world, leg) for leg in legs]


def run_targets(world, case, layout, saved):
    """The second leg, from each of `saved`, on engines that began elsewhere. Collective."""
    other = dataclasses.replace(case, seed=case.seed + OTHER_SEED)
    legs = []
    for state in saved:
        engine = build(world, other, layout)
        engine.load_state(state)
        legs.append(on_rank_0(world, run_leg(world, engine, case, SAVED_AFTER, len(SIZES))))
    return legs


@pytest.fixture(scope="module")
def sources(pools):
    """The legs of a case on a layout, run once."""

    @cache
    def run(case, layout):
        first, *others = pools[layout.ranks].run(run_source, case, layout)
        for other in others:
            assert other == [(list(leg.start), list(leg.end)) for leg in first]
        return first

    return run


def resumed(pools, case, layout, saved):
    first, *others = pools[layout.ranks].run(run_targets, case, layout, saved)
    for other in others:
        assert other == [(list(leg.start), list(leg.end)) for leg in first]
    return first


def assert_same_state(got, expected, where):
    assert got.keys() == expected.keys(), where
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, f"{where}: {name}"
        assert torch.equal(got[name], value), f"{where}: {name}"
