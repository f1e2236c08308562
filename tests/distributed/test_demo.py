"""Twenty steps of the demo under each engine are the same twenty steps.

AdamW hides a wrong scale (contract 7), so what is compared is the gradient norm, beside the ids
and denominators; and the same run with a planted factor of 2 is told apart.
"""

import contextlib
import io
from unittest.mock import patch

import pytest
from distributed.test_zero import float16_on_cpu
from launching import DEEPSPEED_FILES, ledger

from gradacc_dist.config.load import load
from gradacc_dist.engines.replicated import ReplicatedEngine
from gradacc_dist.engines.zero import ZeroEngine
from gradacc_dist.signals import Signals
from gradacc_dist.training import train

pytestmark = pytest.mark.cluster
STEPS = 20
PEAK = 1e-3
ENGINES = ["ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3", "zero3_offload"]
# A step's loss and norm are sums of thousands of products, rounded at 6e-8 each; each step's
# weights differ by that, and AdamW divides small gradients by themselves, which grows it some
# tenfold in twenty steps.
ROUNDING = 1e-5


def run_demo(world, name, output, cache, doubled=False, flags=()):
    """The packaged demo, cut to 20 steps, on the pool's ranks. Collective."""
    flags = flags or ["--schedule.steps", str(STEPS), "--schedule.warmup_steps", "2"]
    flags = [*flags, "--run.output_dir", output, "--data.cache_dir", cache]
    flags += ["--evaluate.examples", "8", "--checkpoint.save_model", "false"]
    flags += ["--track.sample_tokens", "0"]
    if name.startswith("zero"):
        flags += ["--engine.deepspeed", str(DEEPSPEED_FILES / f"{name}.json")]
    else:
        flags += ["--engine.name", name]
    environ = {"WORLD_SIZE": str(world.ranks)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            patch("gradacc_dist.training.start", lambda *_: contextlib.nullcontext(world))
        )
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if doubled:
            for engine in (ReplicatedEngine, ZeroEngine):
                right = engine.backward
                wrong = lambda self, loss, right=right: right(self, 2 * loss)  # noqa: E731
                stack.enter_context(patch.object(engine, "backward", wrong))
            stack.enter_context(patch("gradacc_dist.engines.build.confirm_reduction_factor"))
        train(load(None, flags, environ), Signals())


@pytest.fixture(scope="module")
def alone(pools, tmp_path_factory):
    """The run of one device, and the cache of tokens."""
    folder = tmp_path_factory.mktemp("demo")
    pools[1].run(run_demo, "single", str(folder / "single"), str(folder / "cache"))
    return ledger(folder / "single"), folder


def assert_same_run(ours, theirs):
    assert len(ours) == len(theirs) == STEPS
    for mine, other in zip(ours, theirs, strict=True):
        for exact in ("step", "example_ids_sha256", "supervised_tokens", "learning_rate"):
            assert mine[exact] == other[exact]
        assert mine["loss"] == pytest.approx(other["loss"], rel=ROUNDING)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=ROUNDING)


@pytest.mark.parametrize("name", ENGINES)
def test_twenty_steps_of_the_demo_are_the_same(pools, alone, name):
    single, folder = alone
    pools[2].run(run_demo, name, str(folder / name), str(folder / "cache"))
    found = ledger(folder / name)
    assert {line["engine"] for line in found} == {name.removesuffix("_offload")}
    assert_same_run(found, single)


@pytest.mark.parametrize("name", ["ddp", "zero2"])
def test_a_planted_factor_of_2_is_told_apart(pools, alone, name):
    """Its losses alone would pass."""
    single, folder = alone
    output = folder / f"{name}_doubled"
    pools[2].run(run_demo, name, str(output), str(folder / "cache"), True)
    found = ledger(output)
    worst = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(found, single, strict=True))
    assert worst < 0.01
    with pytest.raises(AssertionError):
        assert_same_run(found, single)


def run_in_float16(world, output, cache):
    """Eight steps on one example a window, under a loss scale that float16 cannot take."""
    few = ["--schedule.steps", "8", "--schedule.warmup_steps", "8", "--window.examples", "2"]
    few += ["--optimizer.learning_rate", str(PEAK)]
    flags = ["--precision.compute", "fp16", *few]
    with float16_on_cpu(), patch("gradacc_dist.engines.loss_scale.FIRST", 2.0**20):
        run_demo(world, "ddp", output, cache, flags=flags)


def test_an_overflow_of_float16_is_in_the_ledger_and_does_not_advance_the_schedule(
    pools, tmp_path, alone
):
    _, folder = alone
    pools[2].run(run_in_float16, str(tmp_path / "half"), str(folder / "cache"))
    found = ledger(tmp_path / "half")
    skipped = [line["skipped"] for line in found]
    assert len(found) == 8
    assert skipped[0] == "loss_scale"
    assert set(skipped) == {"loss_scale", None}
    scale, num_updates = 2.0**20, 0
    for line in found:
        assert line["loss_scale"] == scale
        # The warm-up rises by the updates made, not by the windows consumed.
        assert line["learning_rate"] == pytest.approx(PEAK * (num_updates + 1) / 8)
        scale *= 0.5 if line["skipped"] else 1
        num_updates += line["skipped"] is None
