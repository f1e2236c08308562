"""A pool of gloo ranks that lives as long as the test session.

Each rank is a process that joined one process group through `gradacc_dist.world.start`; a test
hands it a function and arguments, and gets every rank's result back. A rank that raises fails the
test that asked; a rank that hangs fails it after a limit and ends the pool.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

TASK_LIMIT_SECONDS = 600


class RankError(AssertionError):
    """Some rank raised; the text holds its traceback."""


class Pool:
    """`ranks` processes, started at once. Functions and results travel by pickle."""

    def __init__(self, ranks: int) -> None:
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        self.is_closed = False
        self._ends = []
        self._processes = []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, ranks, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(world, *args)` on every rank. Returns the results in rank order."""
        for end in self._ends:
            end.send((function, args))
        outcomes = []
        for rank, end in enumerate(self._ends):
            if not end.poll(TASK_LIMIT_SECONDS):
                self.close()
                raise RankError(f"rank {rank} gave no answer within {TASK_LIMIT_SECONDS} s")
            outcomes.append(end.recv())
        failures = [f"rank {r}:\n{text}" for r, (ok, text) in enumerate(outcomes) if not ok]
        if failures:
            self.close()
            raise RankError("\n".join(failures))
        return [result for _, result in outcomes]

    def close(self) -> None:
        """End the ranks this pool started, and only them."""
        self.is_closed = True
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve(rank: int, ranks: int, port: int, end: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    import torch

    from gradacc_dist.world import start

    torch.set_num_threads(1)
    with start(timeout_seconds=60) as world:
        while True:
            try:
                function, args = end.recv()
            except EOFError:
                return
            try:
                outcome = True, function(world, *args)
            except Exception:  # noqa: BLE001 - whatever it is, it belongs to the test that asked
                outcome = False, traceback.format_exc()
            end.send(outcome)
