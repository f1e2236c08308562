"""B12: a run that moves from cluster to cluster, engine to engine, is the run that stayed.

It stops in mid-epoch, after each leg, and goes on on other ranks, under another engine, with
another micro-batch. What is compared is not what AdamW lets through: ids, denominators, gradient
norms, and at the end the optimizer's state by name.
"""

import json

import pytest
from distributed.cases import worst_error
from distributed.legs import STEPS, leg, write_config
from launching import ledger
from safetensors.torch import load_file

pytestmark = pytest.mark.cluster
# Engine, ranks, micro-batch, and the step after which it stops; an epoch has four windows.
JOURNEYS = {
    "2, 1, 4, 2 ranks": [
        ("zero3", 2, 2, 2),
        ("single", 1, 5, 5),
        ("fsdp2", 4, 1, 6),
        ("zero2", 2, 3, STEPS),
    ],
    "every stage": [
        ("zero0", 2, 1, 1),
        ("zero1", 2, 4, 3),
        ("zero2_offload", 2, 2, 5),
        ("zero3_offload", 2, 1, 7),
        ("ddp", 2, 2, STEPS),
    ],
    "back and forth": [
        ("fsdp2", 2, 2, 3),
        ("ddp", 4, 2, 5),
        ("zero3", 4, 1, 7),
        ("fsdp2", 2, 3, STEPS),
    ],
}
# Sums of thousands of products rounded at 6e-8, grown some tenfold by ten steps of AdamW.
ROUNDING = 1e-5


def saved(folder):
    """The tensors of the last checkpoint by name, and its state."""
    last = sorted((folder / "checkpoints").glob("step-*"))[-1]
    tensors = {}
    for file in last.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors, json.loads((last / "state.json").read_text())


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("moved"))


@pytest.fixture(scope="module")
def stayed(pools, config):
    output = config.parent / "stayed"
    pools[1].run(leg, str(config), str(output), "single", 3, STEPS)
    return output


@pytest.mark.parametrize("journey", JOURNEYS)
def test_b12_a_run_that_moves_is_the_run_that_stayed(pools, config, stayed, journey):
    output = config.parent / journey.replace(", ", "-").replace(" ", "_")
    begun = 0
    for name, ranks, micro_batch, stop in JOURNEYS[journey]:
        printed = pools[ranks].run(leg, str(config), str(output), name, micro_batch, stop)[0]
        if begun:
            assert f"step {begun} of {STEPS}, from " in " ".join(printed.split())
        begun = stop

    ours, theirs = ledger(output), ledger(stayed)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    assert len({line["engine"] for line in ours}) > 2
    for mine, other in zip(ours, theirs, strict=True):
        for exact in ("example_ids_sha256", "supervised_tokens", "epoch", "examples_seen"):
            assert mine[exact] == other[exact]
        assert mine["learning_rate"] == other["learning_rate"]
        assert mine["loss"] == pytest.approx(other["loss"], rel=ROUNDING)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=ROUNDING)
    assert ledger(output, "eval")[-1]["loss"] == pytest.approx(
        ledger(stayed, "eval")[-1]["loss"], rel=ROUNDING
    )

    (tensors, state), (truth, other_state) = saved(output), saved(stayed)
    assert tensors.keys() == truth.keys()
    for kind in ("exp_avg/", "exp_avg_sq/", "step/", ""):
        mine, other = (
            {n: v for n, v in of.items() if (n.startswith(kind) if kind else "/" not in n)}
            for of in (tensors, truth)
        )
        assert mine
        error, parameter = worst_error(mine, other)
        assert error <= (0 if kind == "step/" else 10 * ROUNDING), parameter
    for exact in ("step", "num_updates", "examples_seen", "epoch", "identity", "data_sha256"):
        assert state[exact] == other_state[exact]
