"""Batch: padding is attended by nobody and supervised by nobody."""

import numpy as np
import torch

from gradacc_dist.data.batch import collate
from gradacc_dist.data.tokens import Example
from gradacc_dist.objectives.causal_lm import CausalLM


def example(length: int, first_supervised: int = 0) -> Example:
    ids = np.arange(1, length + 1, dtype=np.int32)
    labels = np.where(np.arange(length) >= first_supervised, ids, -100).astype(np.int32)
    return Example(ids, labels)


def test_pads_on_the_right_to_the_longest():
    batch = collate(5, [example(2), example(4, first_supervised=2)])
    assert batch.input_ids.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert batch.labels.tolist() == [[1, 2, -100, -100], [-100, -100, 3, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert (batch.index, batch.num_examples, batch.input_tokens, batch.padded_tokens) == (
        5,
        2,
        6,
        8,
    )
    assert {t.dtype for t in (batch.input_ids, batch.labels, batch.attention_mask)} == {torch.int64}


def test_filler_holds_no_item_and_attends_to_itself():
    filler = collate(3, [])
    assert CausalLM().count(filler) == {"cross_entropy": 0}
    assert (filler.num_examples, filler.input_tokens, filler.padded_tokens) == (0, 0, 2)
    assert filler.attention_mask.all()


def test_a_single_token_is_a_batch_without_items():
    assert CausalLM().count(collate(0, [example(1)])) == {"cross_entropy": 0}
