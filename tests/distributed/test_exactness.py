"""The promise: any layout gives the gradients of one device that sees the window at once.

A1, A7, A16, A17. float64 against an independent loop, every parameter, to 1e-12.
"""

import dataclasses
from functools import cache

import numpy as np
import pytest
from distributed.cases import Case, Trace, reference, worst_error
from distributed.product import run_case, windows_of

# float64 rounds at 1.1e-16; a parameter's gradient here is a sum of some 500 products through two
# layers, added in another order by each layout. sqrt(500) roundings at two layers' gain, with two
# digits to spare, stay below 1e-12; a wrong denominator shows above 1e-3.
TOLERANCE = 1e-12
WRONG = 1e-3


def mixed(num: int, window: int, steps: int = 3, seed: int = 0) -> Case:
    """Lengths 1 to 60 and supervised fractions 0 to 1, every extreme included."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 61, num)
    fractions = random.random(num)
    lengths[:2], fractions[:2] = (1, 60), (1.0, 0.0)
    fractions[2:4] = 1.0
    return Case(tuple(lengths.tolist()), tuple(fractions.tolist()), window, steps, seed)


def masked_rank() -> Case:
    """Whole micro-batches, and with them whole ranks, hold no supervised token."""
    window = windows_of(mixed(8, 8, steps=1))[0]
    fractions = [0.0] * 8
    for position in (1, 3, 5, 7):
        fractions[window[position]] = 0.7
    return Case((30,) * 8, tuple(fractions), window=8, steps=3)


CASES = {
    "mixed lengths and fractions": mixed(24, 12),
    "17 examples on up to 4 ranks": mixed(17, 17, seed=1),
    "short last window": mixed(22, 9, seed=2),
    "a rank without a supervised token": masked_rank(),
    "one example in the window": Case((5, 33, 11), (1.0, 0.5, 1.0), window=1, steps=3, seed=3),
}


@cache
def expected(name: str) -> Trace:
    return reference(CASES[name], windows_of(CASES[name]))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_gradients_and_weights_equal_the_single_process_run(pools, name, ranks):
    case, truth = CASES[name], expected(name)
    for micro_batch in (1, 2, 3, case.window):
        for trace in pools[ranks].run(run_case, case, micro_batch):
            layout = f"{name}: {ranks} ranks x micro-batch {micro_batch}"
            assert trace.counts == truth.counts, layout
            for step, pair in enumerate(zip(trace.gradients, truth.gradients, strict=True), 1):
                error, parameter = worst_error(*pair)
                assert error <= TOLERANCE, f"{layout}, step {step}: {parameter} off by {error}"
            error, parameter = worst_error(trace.weights, truth.weights)
            assert error <= TOLERANCE, f"{layout}: weight {parameter} off by {error}"
            np.testing.assert_allclose(trace.norms, truth.norms, rtol=TOLERANCE)
            np.testing.assert_allclose(trace.losses, truth.losses, rtol=TOLERANCE)


def has_unequal_counts(case: Case, micro_batch: int) -> bool:
    """Whether the first window has two micro-batches with different numbers of items."""
    items = [int((labels[1:] != -100).sum()) for _, labels in case.examples()]
    window = windows_of(case)[0]
    counts = {
        sum(items[i] for i in window[start : start + micro_batch])
        for start in range(0, len(window), micro_batch)
    }
    return len(counts) > 1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_mean_of_means_is_told_apart(pools, name, ranks):
    """The same matrix fails by far with the historical bug wherever counts differ: it can fail."""
    case = dataclasses.replace(CASES[name], steps=1)
    for micro_batch in (1, 2, 3):
        if has_unequal_counts(case, micro_batch):
            for trace in pools[ranks].run(run_case, case, micro_batch, "micro_batch_mean"):
                error, _ = worst_error(trace.gradients[0], expected(name).gradients[0])
                assert error > WRONG, f"{name}: {ranks} ranks x micro-batch {micro_batch}: {error}"


def test_the_matrix_holds_unequal_counts():
    assert sum(has_unequal_counts(case, 2) for case in CASES.values()) >= 4
