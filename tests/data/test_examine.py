"""What is found in all tokens, against a slow reference."""

import numpy as np
import pytest
from writing import json_lines

from gradacc_dist.data import tokens as tokens_module
from gradacc_dist.data.examine import (
    duplicates,
    keys_of,
    places_of,
    quantiles,
    shared,
    spread_by_length,
)
from gradacc_dist.data.sources import Source
from gradacc_dist.data.tokens import prepare


def array(*values):
    return np.array(values, dtype=np.uint64)


def test_duplicates_name_the_first_of_their_kind():
    found = duplicates(array(7, 3, 7, 9, 3, 7))
    assert (found.num, found.first) == (3, ((2, 0), (4, 1), (5, 0)))
    assert duplicates(array(1, 2, 3)).num == 0
    assert duplicates(array()).num == 0


def test_many_duplicates_are_all_counted_and_the_earliest_named():
    random = np.random.default_rng(0)
    keys = random.integers(0, 50, 400).astype(np.uint64)
    first, pairs = {}, []
    for index, key in enumerate(keys.tolist()):
        if first.setdefault(key, index) != index:
            pairs.append((index, first[key]))
    found = duplicates(keys)
    assert found.num == len(pairs)
    assert found.first == tuple(pairs[: len(found.first)])
    assert len(found.first) == 5


def test_shared_examples_are_named_on_both_sides():
    found = shared(array(5, 8, 1, 8), array(8, 2, 5, 8))
    assert (found.num, found.first) == (3, ((0, 2), (1, 0), (3, 0)))
    # Above and below all others: a search by bisection must not take the neighbour.
    assert shared(array(0, 99), array(8, 2, 5)).num == 0
    assert shared(array(1), array()).num == 0
    assert shared(array(), array(1)).num == 0


def test_keys_are_equal_where_the_tokens_are(tmp_path, embedded_tokenizer, monkeypatch):
    """Over several batches; a key depends neither on labels nor on the tokens around."""
    monkeypatch.setattr(tokens_module, "ROWS_PER_BATCH", 2)
    ids = [[5, 6], [5], [6, 5], [5, 6], [5, 6, 7], [5], [256, 6]]
    rows = [{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids[:5]]
    rows += [{"input_ids": row, "labels": row} for row in ids[5:]]
    source = Source(str(json_lines(tmp_path / "a.jsonl", rows)), "train")
    keys = keys_of(prepare(source, embedded_tokenizer, 64, tmp_path)).tolist()
    assert len(keys) == len(ids)
    for i, one in enumerate(ids):
        for j, other in enumerate(ids):
            assert (keys[i] == keys[j]) == (one == other)


def test_quantiles_are_values_that_occur():
    assert quantiles(np.arange(1, 201)) == [100, 180, 198, 200]
    assert quantiles(np.array([4])) == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("lengths", "chosen"), [([5, 1, 9, 7, 3], [1, 0, 2]), ([2, 2], [0, 1]), ([8], [0])]
)
def test_samples_span_the_lengths(lengths, chosen):
    assert spread_by_length(np.array(lengths), 3) == chosen


def test_places_run_on_through_the_sources(tmp_path):
    rows = [{"text": "a"}] * 3
    sources = [
        (Source(str(json_lines(tmp_path / name, rows)), "train"), 3)
        for name in ("a.jsonl", "b.jsonl")
    ]
    found = places_of(sources, {5, 0, 3})
    assert {index: str(place) for index, place in found.items()} == {
        0: f"{tmp_path}/a.jsonl: row 1",
        3: f"{tmp_path}/b.jsonl: row 1",
        5: f"{tmp_path}/b.jsonl: row 3",
    }
