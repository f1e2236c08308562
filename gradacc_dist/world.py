"""The ranks of a run: who this process is, its device, and the two process groups.

accelerate starts the default group, on which the engines reduce gradients. A second group, always
gloo and on the CPU, carries the small matrices by which ranks agree, so that an agreement in
flight never waits behind a gradient.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor

from gradacc_dist.errors import ConfigError, GradaccError


class SharedRows:
    """A (ranks, k) float64 matrix on its way: each rank fills its own row, all get the whole.

    Summing a matrix that is zero outside the own row is exact, so every rank sees the same bits
    whatever the order in which the network adds.
    """

    def __init__(self, matrix: Tensor, work: dist.Work | None) -> None:
        self._matrix = matrix
        self._work = work

    def wait(self) -> Tensor:
        """Block until all ranks have filled their rows. Collective. Returns (ranks, k) float64."""
        if self._work is not None:
            self._work.wait()
        return self._matrix


@dataclass(frozen=True)
class World:
    """This process among the ranks. `hostnames` has one entry a rank."""

    rank: int
    ranks: int
    device: torch.device
    hostnames: tuple[str, ...]
    accelerator: Accelerator
    agreement_group: dist.ProcessGroup | None

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and speaks to people."""
        return self.rank == 0

    def describe_rank(self, rank: int) -> str:
        """A rank as people find it."""
        return f"rank {rank} of {self.ranks} (host {self.hostnames[rank]})"

    def share_row(self, row: Sequence[float]) -> SharedRows:
        """Start sharing `row` with all ranks. Collective: same length and order of calls on each.

        Call it on the main thread only, so that every rank issues its collectives in one order.
        """
        matrix = torch.zeros(self.ranks, len(row), dtype=torch.float64)
        matrix[self.rank] = torch.tensor(row, dtype=torch.float64)
        work = None
        if self.agreement_group is not None and row:
            work = dist.all_reduce(matrix, group=self.agreement_group, async_op=True)
        return SharedRows(matrix, work)

    def share_text(self, text: str) -> list[str]:
        """Every rank's text, by rank. Collective, for once in a run; on the main thread only."""
        return _gathered(text, self.ranks, self.agreement_group)

    @contextmanager
    def main_alone(self) -> Iterator[None]:
        """Around work that only rank 0 does and that can fail. Collective.

        A GradaccError of rank 0 ends every rank: rank 0 with the error, the others with a silent
        one of the same exit code, instead of a wait for a peer that is gone.
        """
        error: GradaccError | None = None
        try:
            yield
        except GradaccError as raised:
            error = raised
        exit_code = error.exit_code if error else 0
        codes = self.share_row([float(exit_code)]).wait()
        if error is not None:
            error.same_on_all_ranks = True  # the others are just about to end, too
            raise error
        if codes.any():
            failed = GradaccError("rank 0 failed; see its message", same_on_all_ranks=True)
            failed.exit_code = int(codes.max())
            raise failed


@contextmanager
def start(timeout_seconds: float, environ: Mapping[str, str] = os.environ) -> Iterator[World]:
    """Join the ranks the launcher started, and leave them at the end. Collective.

    Raises ConfigError when the launcher promised more ranks than accelerate found: it would
    otherwise train that many unconnected copies.
    """
    timeout = timedelta(seconds=timeout_seconds)
    with _without_deepspeed():
        accelerator = Accelerator(
            # Without this, accelerate without GPU connects no ranks and says nothing.
            cpu=not torch.cuda.is_available(),
            # Precision is ours (config section `precision`); accelerate's own autocast stays off.
            mixed_precision="no",
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timeout),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            ],
        )
    promised = int(environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != promised:
        raise ConfigError(
            f"the launcher started {promised} ranks but accelerate connected "
            f"{accelerator.num_processes}; start with `accelerate launch --multi_gpu "
            f"--num_processes {promised}` or torchrun"
        )
    ranks = accelerator.num_processes
    group = dist.new_group(backend="gloo", timeout=timeout) if ranks > 1 else None
    try:
        yield World(
            rank=accelerator.process_index,
            ranks=ranks,
            device=accelerator.device,
            hostnames=tuple(_gathered(socket.gethostname(), ranks, group)),
            accelerator=accelerator,
            agreement_group=group,
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _without_deepspeed() -> Iterator[None]:
    """DeepSpeed's engine is ours to start: accelerate would connect the ranks by DeepSpeed, and
    wrap it in a loop of its own that clips and steps inside backward."""
    switch = "ACCELERATE_USE_DEEPSPEED"
    asked = os.environ.pop(switch, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[switch] = asked


def form_group_alone(device: torch.device) -> None:
    """A process group of this process, for an engine that needs one where no launcher made any."""
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
        )


def _gathered(text: str, ranks: int, group: dist.ProcessGroup | None) -> list[str]:
    texts = [text] * ranks
    if group is not None:
        dist.all_gather_object(texts, text, group=group)
    return texts
