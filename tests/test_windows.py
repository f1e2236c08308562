"""Windows come with their agreements, each launched one window ahead; none is left in flight."""

from itertools import islice

import numpy as np
import pytest
import torch
from distributed.product import ListedTokens

from gradacc_dist.data.order import Order
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.windows import Assembler, agreed_windows


class Rows:
    """A row on its way; `fails` like a peer that is gone."""

    def __init__(self, row: list[float], *, fails: bool) -> None:
        self.matrix = torch.tensor([row], dtype=torch.float64)
        self.fails = fails
        self.num_waits = 0

    def wait(self) -> torch.Tensor:
        self.num_waits += 1
        if self.fails:
            raise RuntimeError("connection closed by peer")
        return self.matrix


class World:
    """One rank that keeps the rows it shared."""

    rank, ranks = 0, 1

    def __init__(self, failing: int = -1) -> None:
        self.shared: list[Rows] = []
        self._failing = failing

    def share_row(self, row: list[float]) -> Rows:
        self.shared.append(Rows(row, fails=len(self.shared) == self._failing))
        return self.shared[-1]


def windows(world: World):
    ids = np.arange(1, 6, dtype=np.int32)
    assembler = Assembler(ListedTokens([(ids, ids)] * 10), CausalLM(), 2, 0, 1, "test")
    return agreed_windows(islice(Order(10, 0, 3).windows(), 4), assembler, world)


def test_each_window_has_its_own_agreement():
    found = list(windows(World()))
    assert [local.window.step for local, _ in found] == [1, 2, 3, 4]
    for local, agreement in found:
        assert agreement.global_items == {"cross_entropy": 4.0 * len(local.window.example_ids)}


def test_the_next_agreement_is_under_way_while_a_window_is_computed():
    world = World()
    made = windows(world)
    next(made)
    assert [rows.num_waits for rows in world.shared] == [1, 0]
    made.close()


def test_an_agreement_in_flight_is_drained_when_the_loop_stops_early():
    world = World()
    made = windows(world)
    next(made)
    made.close()
    assert [rows.num_waits for rows in world.shared] == [1, 1]


def test_draining_does_not_hide_why_the_loop_stopped():
    made = windows(World(failing=1))
    next(made)
    with pytest.raises(ValueError, match="the first cause"):
        made.throw(ValueError("the first cause"))
