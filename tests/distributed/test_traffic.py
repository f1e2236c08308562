"""What travels in a window, counted at the process group (P5)."""

from collections import Counter

import pytest
import torch
from distributed.cases import LEARNING_RATE, Case
from distributed.product import build, whole
from launching import DEEPSPEED_FILES
from torch.utils._python_dispatch import TorchDispatchMode

from gradacc_dist.config.schema import Engine as EngineConfig
from gradacc_dist.data.batch import collate
from gradacc_dist.data.tokens import Example

CASE = Case((9,) * 4, (1.0,) * 4, window=4, steps=1, dtype="float32")
TURNS = 4


def zero(name, reduce="auto"):
    return {"deepspeed": DEEPSPEED_FILES / f"{name}.json", "reduce": reduce}


REDUCTIONS = ("allreduce_", "_reduce_scatter_base_")


# Where each operation takes what it sends: gathers and scatters take their output first.
SENT = {"allreduce_": 0, "_reduce_scatter_base_": 1, "_allgather_base_": 1}


class Traffic(TorchDispatchMode):
    """Calls of collectives, and the bytes handed to them, by operation."""

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.calls[func._opname] += 1
            if func._opname in SENT:
                sent = args[SENT[func._opname]]
                for tensor in sent if isinstance(sent, list) else [sent]:
                    self.bytes[func._opname] += tensor.numel() * tensor.itemsize
        return func(*args, **(kwargs or {}))


def window_traffic(world, engine):
    """Of one window of TURNS micro-batches, and of its update; (bytes of the model's gradients,
    bytes reduced, collectives that reduce, gathers, collectives of the update). Collective."""
    built = build(world, CASE, EngineConfig(**engine))
    batches = [collate(i, [Example(*CASE.examples()[i])]) for i in range(TURNS)]
    size = sum(p.numel() * p.itemsize for p in CASE.model().parameters())
    with Traffic() as forward_and_backward:
        for batch in batches:
            with built.micro_batch(last=batch is batches[-1]):
                built.backward(built.forward(batch)["cross_entropy"])
    with Traffic() as update:
        built.update(LEARNING_RATE, 1.0)
    reduced = sum(forward_and_backward.bytes[name] for name in REDUCTIONS)
    calls = sum(forward_and_backward.calls[name] for name in REDUCTIONS)
    gathers = forward_and_backward.calls["_allgather_base_"]
    return size, reduced, calls, gathers, sum(update.calls.values()), sum(update.bytes.values())


# Bytes of gradients handed to a reduction in a window, as multiples of the model's. The model in
# two blocks and a rest makes three units of FSDP2; DDP has one bucket. DeepSpeed's buckets hold
# hidden_size^2 elements, here 1,024, as transformers fills them in.
EXPECTED = {
    "ddp": ({"name": "ddp", "reduce": "window"}, 1, 1),
    "ddp, micro_batch": ({"name": "ddp", "reduce": "micro_batch"}, TURNS, TURNS),
    "fsdp2, window": ({"name": "fsdp2", "reduce": "window"}, 1, 3),
    "fsdp2": ({"name": "fsdp2", "reduce": "micro_batch"}, TURNS, 3 * TURNS),
    "zero0": (zero("zero0"), 1, 1),
    "zero1": (zero("zero1"), 1, 15),
    "zero2, window": (zero("zero2", "window"), 1, 15),
    "zero2": (zero("zero2"), TURNS, 19 * TURNS),
    "zero2_offload, window": (zero("zero2_offload", "window"), 1, 15),
    "zero3, window": (zero("zero3", "window"), 1, 15),
    "zero3": (zero("zero3"), TURNS, 19 * TURNS),
}


@pytest.mark.parametrize("title", EXPECTED)
def test_p5_gradients_travel_once_a_window_or_once_a_micro_batch(pools, title):
    engine, times, calls = EXPECTED[title]
    for size, reduced, num_reductions, *_ in pools[2].run(window_traffic, engine):
        # FSDP2 pads rows to a multiple of the ranks: here one row of the vocabulary's 61, twice.
        assert times * size <= reduced <= 1.02 * times * size
        assert num_reductions == calls


def test_p5_hybrid_sharding_adds_the_shards_over_replicas(pools):
    for reduce, times in (("window", 1), ("micro_batch", TURNS)):
        engine = {"name": "fsdp2", "replicas": 2, "reduce": reduce}
        for size, reduced, num_reductions, *_ in pools[4].run(window_traffic, engine):
            assert 1.5 * times * size <= reduced <= 1.02 * 1.5 * times * size
            assert num_reductions == times * 3 * 2


def test_kept_weights_are_gathered_once_a_window(pools):
    """Three units in forward, and the two blocks again in backward; the root stays."""
    for keep, gathers in ((False, 3), (True, 5 * TURNS)):
        engine = {"name": "fsdp2", "reshard_after_forward": keep}
        for result in pools[2].run(window_traffic, engine):
            assert result[3] == gathers


def test_a13_the_norm_costs_one_number(pools):
    """float64, 8 bytes, once an update, whatever the number of parameters."""
    for *_, calls, num_bytes in pools[2].run(window_traffic, {"name": "fsdp2"}):
        assert (calls, num_bytes) == (1, 8)


def exported(world, case, engine):
    """What state_dict gives after an evaluation, the same gathered by torch, evaluation sums
    before and after, and whether parameters are shards again. Collective."""
    built = build(world, case, EngineConfig(**engine))
    batch = collate(0, [Example(*case.examples()[0])])
    first = float(built.evaluate(batch)["cross_entropy"])
    state = built.state_dict()
    again = {n: whole(v) for n, v in built.module.model.state_dict().items()}
    second = float(built.evaluate(batch)["cross_entropy"])
    assert built.module.training
    assert all(type(p.data).__name__ == "DTensor" for p in built.module.parameters())
    aliases = {n: v.data_ptr() for n, v in state.items()}
    return state, again, (first, second), aliases


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("engine", [{"name": "fsdp2"}, {"name": "fsdp2", "offload": True}])
def test_the_whole_state_on_rank_0_only(pools, engine, tied):
    case = Case((9,) * 4, (1.0,) * 4, window=4, steps=1, dtype="float32", tied=tied)
    truth = case.model().state_dict()
    results = pools[2].run(exported, case, engine)
    state, again, sums, aliases = results[0]
    assert state.keys() == truth.keys()
    for name, value in truth.items():
        assert torch.equal(state[name], value)
        assert torch.equal(again[name], value)
    assert (aliases["lm_head.weight"] == aliases["model.embed_tokens.weight"]) == tied
    assert results[1][0] == {}
    assert sums[0] == sums[1]
    assert sums == results[1][2]


def other_weights(world):
    """Ranks that start from other weights."""
    case = Case((9,), (1.0,), window=1, steps=1, seed=world.rank)
    built = build(world, case, EngineConfig(name="fsdp2"))
    return {n: whole(v) for n, v in built.module.model.state_dict().items()}


def test_weights_are_those_of_rank_0(pools):
    truth = Case((9,), (1.0,), window=1, steps=1, seed=0).model().state_dict()
    for state in pools[2].run(other_weights):
        assert all(torch.equal(state[name], value) for name, value in truth.items())
