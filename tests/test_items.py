"""Items: data and objective count the same tokens, after the causal shift (A4)."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradacc_dist.data.batch import collate
from gradacc_dist.data.tokens import Example
from gradacc_dist.items import causal_targets, count_causal_items
from gradacc_dist.objectives.causal_lm import CausalLM

labels = st.lists(st.sampled_from([-100, 0, 7]), min_size=1, max_size=30)


def test_the_first_label_is_never_an_item():
    assert count_causal_items([5, -100, 6]) == 1
    assert count_causal_items([5]) == 0
    assert causal_targets(torch.tensor([[5, -100, 6]])).tolist() == [[-100, 6]]


@given(rows=st.lists(labels, min_size=1, max_size=5))
def test_cached_counts_equal_what_the_objective_counts_in_a_batch(rows):
    examples = [Example(np.ones(len(r), np.int32), np.array(r, np.int32)) for r in rows]
    counted = CausalLM().count(collate(0, examples))["cross_entropy"]
    assert counted == sum(count_causal_items(row) for row in rows)
