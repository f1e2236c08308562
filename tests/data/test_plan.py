"""Plan: each example in exactly one cell, equally many cells a rank, on any cluster (A16, A17)."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradacc_dist.data.plan import plan

examples = st.integers(1, 300)
micro_batches = st.integers(1, 320)
ranks = st.integers(1, 40)


@given(num=examples, micro_batch=micro_batches, num_ranks=ranks)
def test_each_example_exactly_once(num, micro_batch, num_ranks):
    ids = np.random.default_rng(num).permutation(1000)[:num]
    cells = [cell for rank in plan(ids, micro_batch, num_ranks).ranks for cell in rank]
    placed = np.concatenate([cell.example_ids for cell in cells])
    assert sorted(placed.tolist()) == sorted(ids.tolist())
    assert all(len(cell.example_ids) <= micro_batch for cell in cells)


@given(num=examples, micro_batch=micro_batches, num_ranks=ranks)
def test_equal_turns_and_no_turn_that_is_all_filler(num, micro_batch, num_ranks):
    made = plan(np.arange(num), micro_batch, num_ranks)
    assert len(made.ranks) == num_ranks
    assert len({len(cells) for cells in made.ranks}) == 1
    for turn in zip(*made.ranks, strict=True):
        assert any(not cell.is_filler for cell in turn)
    real = [cell for cells in made.ranks for cell in cells if not cell.is_filler]
    assert len(real) == made.num_micro_batches == -(-num // micro_batch)


@given(num=examples, micro_batch=micro_batches, one=ranks, other=ranks)
def test_the_same_micro_batches_on_any_number_of_ranks(num, micro_batch, one, other):
    def by_index(num_ranks: int) -> dict[int, list[int]]:
        cells = [c for rank in plan(np.arange(num), micro_batch, num_ranks).ranks for c in rank]
        assert sorted(c.index for c in cells) == list(range(len(cells)))
        return {c.index: c.example_ids.tolist() for c in cells if not c.is_filler}

    assert by_index(one) == by_index(other)


def test_seventeen_examples_on_four_ranks():
    made = plan(np.arange(17), 3, 4)
    sizes = [[len(cell.example_ids) for cell in cells] for cells in made.ranks]
    assert sizes == [[3, 3], [3, 2], [3, 0], [3, 0]]
