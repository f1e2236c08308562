"""Every engine gives the gradients, norms and weights of one device (A1, A7, A13, A17, A19)."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from distributed.cases import Case, Trace, reference, worst_error
from distributed.product import run_case, windows_of
from distributed.test_exactness import TOLERANCE, mixed

from gradacc_dist.config.schema import Engine as EngineConfig

LAYOUTS = {
    "ddp": (2, {"name": "ddp"}),
    "ddp, 4 ranks": (4, {"name": "ddp"}),
    "fsdp2, one rank": (1, {"name": "fsdp2"}),
    "fsdp2": (2, {"name": "fsdp2"}),
    "fsdp2, 4 ranks": (4, {"name": "fsdp2"}),
    "fsdp2, 4 ranks as 2 x 2": (4, {"name": "fsdp2", "replicas": 2}),
}
OTHER_SHARDINGS = {
    "weights kept": {"name": "fsdp2", "reshard_after_forward": False},
    "offloaded": {"name": "fsdp2", "offload": True},
    "sharded as one": {"name": "fsdp2", "wrap": ()},
    "sharded in other blocks": {"name": "fsdp2", "wrap": ("LlamaMLP", "LlamaAttention")},
    "all replicas": {"name": "fsdp2", "replicas": 2},
}
# Gradient norms of these cases are around 1 to 3: this clips every step.
CLIP = 0.5


def accumulation(title: str, ranks: int) -> tuple[Case, int]:
    """A case and the size of its micro-batches."""
    if title == "uneven":
        # 9, 9 and 4 examples: filler, and a short last window.
        return mixed(22, 9, seed=2), 2
    turns = int(title)
    return mixed(24, 12, steps=2), 12 // (ranks * turns)


@cache
def expected(case: Case) -> Trace:
    return reference(case, windows_of(case))


def assert_equal(traces: list[Trace], truth: Trace, tolerance: float, layout: str) -> None:
    """Every rank's trace against the truth."""
    for trace in traces:
        assert trace.counts == truth.counts, layout
        for step, (ours, theirs) in enumerate(zip(trace.gradients, truth.gradients, strict=True)):
            error, parameter = worst_error(ours, theirs)
            assert error <= tolerance, f"{layout}, step {step}: {parameter} off by {error}"
        error, parameter = worst_error(trace.weights, truth.weights)
        assert error <= tolerance, f"{layout}: weight {parameter} off by {error}"
        np.testing.assert_allclose(trace.norms, truth.norms, rtol=tolerance)
        np.testing.assert_allclose(trace.losses, truth.losses, rtol=tolerance)
        # A13: to the bit, on every rank.
        assert trace.norms == traces[0].norms, layout


@pytest.mark.parametrize("clip", [None, CLIP])
@pytest.mark.parametrize("turns", ["1", "3", "uneven"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float64_equals_one_device(pools, layout, turns, clip):
    ranks, engine = LAYOUTS[layout]
    case, micro_batch = accumulation(turns, ranks)
    case = dataclasses.replace(case, max_norm=clip)
    truth = expected(case)
    assert clip is None or min(truth.norms) > clip
    for reduce in ("window", "micro_batch"):
        config = EngineConfig(**engine, reduce=reduce)
        traces = pools[ranks].run(run_case, case, micro_batch, "window", config)
        assert_equal(traces, truth, TOLERANCE, f"{layout} x {turns} x {reduce}")


@pytest.mark.parametrize("sharding", OTHER_SHARDINGS)
def test_other_shardings_equal_one_device(pools, sharding):
    """A19: with offload too, gradients accumulate."""
    case, micro_batch = accumulation("uneven", 2)
    truth = expected(case)
    for reduce in ("window", "micro_batch"):
        config = EngineConfig(**OTHER_SHARDINGS[sharding], reduce=reduce)
        traces = pools[2].run(run_case, case, micro_batch, "window", config)
        assert_equal(traces, truth, TOLERANCE, f"{sharding} x {reduce}")


SPECIAL_MODELS = {
    "tied": {"tied": True},
    "frozen, the first layer's input included": {
        "frozen": ("model.embed_tokens", "model.layers.1.mlp.up_proj", "model.norm")
    },
    "tied and frozen blocks": {"tied": True, "frozen": ("model.layers",)},
}


@pytest.mark.parametrize("special", SPECIAL_MODELS)
@pytest.mark.parametrize("layout", ["ddp", "fsdp2"])
def test_tied_and_frozen_parameters(pools, layout, special):
    ranks, engine = LAYOUTS[layout]
    case, micro_batch = accumulation("uneven", ranks)
    case = dataclasses.replace(case, max_norm=CLIP, **SPECIAL_MODELS[special])
    truth = expected(case)
    for reduce in ("window", "micro_batch"):
        config = EngineConfig(**engine, reduce=reduce)
        traces = pools[ranks].run(run_case, case, micro_batch, "window", config)
        assert_equal(traces, truth, TOLERANCE, f"{layout} x {special} x {reduce}")


# float32 rounds at 6e-8. Some 500 products a gradient through two layers, in another order, come
# to about sqrt(500) / 2 roundings: 7e-7 (P1: at most 1e-6). A plain loop on one device measures
# 4e-7 with transformers' usual initial weights; weights ten times larger cost it 2e-6.
FLOAT32 = 1e-6
USUAL_WEIGHTS = 0.02
# bfloat16 rounds at 2^-9; through the model's some 20 products in a row, errors of either sign,
# come to about sqrt(20) roundings: 9e-3, and parameters whose gradients nearly cancel to a few
# times that. Counting a rank or a micro-batch once too often or too rarely, of 2, shows as 0.5.
BFLOAT16 = 0.05
WRONG_FACTOR = 0.5


@pytest.mark.parametrize("layout", ["fsdp2, one rank", "ddp", "fsdp2", "fsdp2, 4 ranks as 2 x 2"])
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_lower_precisions(pools, layout, compute):
    """fp32 and bf16 against float64. Gradients are fp32 under both (contract 6)."""
    ranks, engine = LAYOUTS[layout]
    case, micro_batch = accumulation("uneven", ranks)
    tolerance = FLOAT32 if compute == "fp32" else BFLOAT16
    assert 10 * tolerance <= WRONG_FACTOR
    case = dataclasses.replace(case, initializer_range=USUAL_WEIGHTS)
    truth = expected(case)
    for reduce in ("window", "micro_batch"):
        config = EngineConfig(**engine, reduce=reduce)
        given = dataclasses.replace(case, dtype="float32")
        traces = pools[ranks].run(run_case, given, micro_batch, "window", config, compute)
        dtypes = {g.dtype for trace in traces for step in trace.gradients for g in step.values()}
        assert dtypes == {torch.float32}
        assert_equal(traces, truth, tolerance, f"{layout} x {compute} x {reduce}")
