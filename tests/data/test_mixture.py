"""Mixtures: a weight is how many times an epoch holds a source's examples."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradacc_dist.data.mixture import Mixture, Part, weighted_rows
from gradacc_dist.data.tokens import Example
from gradacc_dist.errors import DataError

WEIGHTS = st.floats(0.01, 4) | st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
SIZES = st.integers(0, 300)


@dataclass
class Listed:
    """Tokens whose example n of source s is [s, n]."""

    source: int
    size: int

    def __post_init__(self):
        self.sha256 = f"{self.source}/{self.size}"
        self.lengths = np.full(self.size, 10 + self.source)
        self.items = np.arange(self.size)

    def __len__(self):
        return self.size

    def examples(self, ids):
        return [Example(np.array([self.source, n]), np.array([self.source, n])) for n in ids]


@given(size=SIZES, weight=WEIGHTS)
def test_each_row_comes_as_often_as_the_weight_says(size, weight):
    rows = weighted_rows(size, weight)
    times = int(weight)
    assert len(rows) == times * size + int((weight - times) * size + 0.5)
    counts = Counter(rows.tolist())
    assert set(counts.values()) <= {times, times + 1}
    assert set(counts) <= set(range(size))
    assert (rows == weighted_rows(size, weight)).all()


@given(size=SIZES)
def test_weight_one_is_the_source_as_it_is(size):
    assert weighted_rows(size, 1.0).tolist() == list(range(size))


@given(size=SIZES, one=st.floats(0.01, 0.99), other=st.floats(0.01, 0.99))
def test_a_larger_fraction_holds_the_smaller_ones_rows(size, one, other):
    small, large = sorted([one, other])
    assert set(weighted_rows(size, small)) <= set(weighted_rows(size, large))


def test_the_subset_is_spread_and_known():
    """Pinned: another subset would be another data set for everybody who resumes."""
    assert weighted_rows(20, 0.25).tolist() == [2, 4, 6, 8, 18]
    halves = np.histogram(weighted_rows(10_000, 0.1), bins=10, range=(0, 10_000))[0]
    # 100 expected in each tenth; 5 standard deviations of a hypergeometric count.
    assert abs(halves - 100).max() < 5 * 9.1


@given(
    parts=st.lists(
        st.tuples(st.integers(2, 60), WEIGHTS.filter(lambda w: w >= 0.5)), min_size=1, max_size=4
    ),
    data=st.data(),
)
def test_a_mixture_reads_like_one_source(parts, data):
    mixture = Mixture(
        [Part(str(n), Listed(n, size), weight) for n, (size, weight) in enumerate(parts)]
    )
    expected = [
        (n, row) for n, (size, weight) in enumerate(parts) for row in weighted_rows(size, weight)
    ]
    assert len(mixture) == len(expected)
    assert mixture.items.tolist() == [row for _, row in expected]
    assert mixture.lengths.tolist() == [10 + n for n, _ in expected]
    sizes = Counter(n for n, _ in expected)
    assert [mixture.num_examples(n) for n in range(len(parts))] == [
        sizes[n] for n in range(len(parts))
    ]
    ids = data.draw(st.lists(st.integers(0, len(mixture) - 1), max_size=20))
    found = [
        tuple(example.input_ids) for example in mixture.examples(np.array(ids, dtype=np.int64))
    ]
    assert found == [expected[number] for number in ids]


def test_the_identity_follows_parts_order_and_weights():
    a, b = Listed(0, 5), Listed(1, 5)
    mixtures = [
        [Part("a", a)],
        [Part("a", a, 2.0)],
        [Part("a", a), Part("b", b)],
        [Part("b", b), Part("a", a)],
    ]
    assert len({Mixture(parts).sha256 for parts in mixtures}) == 4
    assert Mixture([Part("other name", a)]).sha256 == Mixture([Part("a", a)]).sha256


def test_a_weight_that_leaves_nothing_is_an_error():
    with pytest.raises(DataError, match=r"few: weight 0\.1 of 4 rows is less than half a row"):
        Mixture([Part("many", Listed(0, 9)), Part("few", Listed(1, 4), 0.1)])
