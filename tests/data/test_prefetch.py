"""Prefetch: ahead, in order, errors in their place, and the thread ends with the consumer."""

import threading

import pytest

from gradacc_dist.data.prefetch import DEPTH, prefetched


def test_in_order():
    with prefetched(lambda key: key * key, range(20)) as made:
        assert list(made) == [key * key for key in range(20)]


def test_nothing_to_make():
    with prefetched(str, []) as made:
        assert list(made) == []


def test_an_error_comes_in_its_place():
    def make(key: int) -> int:
        return 1 // (2 - key)

    with prefetched(make, range(5)) as made:
        assert [next(made), next(made)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(made)


def test_an_error_of_the_keys_comes_in_its_place():
    def keys():
        yield 1
        raise ZeroDivisionError

    with prefetched(str, keys()) as made:
        assert next(made) == "1"
        with pytest.raises(ZeroDivisionError):
            next(made)


def test_works_ahead_but_not_far():
    started: list[int] = []
    ahead = threading.Event()

    def make(key: int) -> int:
        started.append(key)
        if key == DEPTH:
            ahead.set()
        return key

    with prefetched(make, range(100)) as made:
        # Nothing was consumed: DEPTH wait in the queue and one more is in the making.
        assert ahead.wait(timeout=10)
        assert next(made) == 0
    assert len(started) <= DEPTH + 3


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    with prefetched(lambda key: key, range(10**9)) as made:
        next(made)
    assert threading.active_count() == before
