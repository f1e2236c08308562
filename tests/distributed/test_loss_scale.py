"""float16's loss scale goes on as if the run had not ended: when it is raised, and when lowered."""

import copy
import dataclasses
from itertools import repeat

import pytest
from distributed.test_state import LAYOUTS, build, problem
from distributed.test_zero import float16_on_cpu

from gradacc_dist.engines import loss_scale
from gradacc_dist.engines.loss_scale import LossScale

PATIENCE = 4
OVERFLOWS = [*repeat(False, 6), True, *repeat(False, 9), True, False, True, True, *repeat(False, 9)]


class Ours:
    def __init__(self) -> None:
        self.scale = LossScale()

    def update(self, is_overflow: bool) -> None:
        self.scale.overflowed() if is_overflow else self.scale.applied()

    value = property(lambda self: self.scale.value)
    state = property(lambda self: self.scale.state)

    def restore(self, state) -> None:
        self.scale.restore(state)


class DeepSpeeds:
    """Of an engine, by the scaler that it has from DeepSpeed."""

    def __init__(self, engine) -> None:
        self.engine = engine
        engine._optimizer.loss_scaler.scale_window = PATIENCE
        self.update = engine._optimizer.loss_scaler.update_scale
        self.restore = engine.restore_loss_scale

    value = property(lambda self: self.engine.loss_scale)
    state = property(lambda self: self.engine.loss_scale_state)


def trace(scale, overflows) -> list[float]:
    values = []
    for is_overflow in overflows:
        scale.update(is_overflow)
        values.append(scale.value)
    return values


def goes_on_after_each_update(make, again) -> bool:
    """Whether what `again` restored follows what `make` made, wherever it takes over."""
    truth = trace(make(), OVERFLOWS)
    assert len(set(truth)) > 3
    for stop in range(len(OVERFLOWS)):
        stayed, moved = make(), again()
        trace(stayed, OVERFLOWS[:stop])
        moved.restore(stayed.state)
        assert [moved.value, *trace(moved, OVERFLOWS[stop:])] == [stayed.value, *truth[stop:]], stop
    return True


def test_a_loss_scale_goes_on(monkeypatch):
    monkeypatch.setattr(loss_scale, "PATIENCE", PATIENCE)
    assert goes_on_after_each_update(Ours, Ours)


def deepspeed_goes_on(world) -> bool:
    layout = dataclasses.replace(LAYOUTS["zero2"], compute="fp16")
    with float16_on_cpu():
        one, other = (build(world, problem(), layout) for _ in range(2))
    fresh = {engine: copy.copy(engine._optimizer.loss_scaler) for engine in (one, other)}

    def renewed(engine):
        engine._optimizer.loss_scaler = copy.copy(fresh[engine])
        return DeepSpeeds(engine)

    # The one that goes on has a past of its own, which must not tell.
    fresh[other].update_scale(True)
    fresh[other].update_scale(False)
    return goes_on_after_each_update(lambda: renewed(one), lambda: renewed(other))


@pytest.mark.cluster  # compiles operators
def test_deepspeeds_loss_scale_goes_on(pools):
    assert pools[1].run(deepspeed_goes_on) == [True]
