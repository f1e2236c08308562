"""Make things ahead of time in one background thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import Empty, Full, Queue
from typing import TypeVar

Key = TypeVar("Key")
Made = TypeVar("Made")

# Two finished ones hide the jitter of a loader; more would only hold memory.
DEPTH = 2


@contextmanager
def prefetched(make: Callable[[Key], Made], keys: Iterable[Key]) -> Iterator[Iterator[Made]]:
    """`make(key)` for each key, in order, up to DEPTH ahead of the consumer.

    An exception of `make`, or of `keys`, is raised in the consumer, in its place in the order. The
    one thread takes a key only after it has made the one before. Leaving the context stops it after
    the item in the making.
    """
    queue: Queue[Future[Made] | None] = Queue(maxsize=DEPTH)
    stopped = threading.Event()

    def put(entry: Future[Made] | None) -> None:
        while not stopped.is_set():
            try:
                queue.put(entry, timeout=0.1)
                return
            except Full:
                continue

    def work() -> None:
        # A generator: a StopIteration of `make` is an error there, not the end.
        made = (make(key) for key in keys)
        while True:
            future: Future[Made] = Future()
            try:
                future.set_result(next(made))
            except StopIteration:
                break
            except BaseException as error:  # noqa: BLE001 - carried over to the consumer
                future.set_exception(error)
            put(future)
            if stopped.is_set() or future.exception() is not None:
                return
        put(None)

    def consume() -> Iterator[Made]:
        while (future := queue.get()) is not None:
            yield future.result()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stopped.set()
        while thread.is_alive():
            try:
                queue.get(timeout=0.05)
            except Empty:
                continue
