"""A copy of the run's state in host memory, each rank its share: all that training waits for."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from types import MappingProxyType

import torch
from torch import Tensor

from gradacc_dist.checkpoint.shards import HostTensor

BLOCK_BYTES = 128 << 20
ALIGNMENT_BYTES = 64

DTYPES = MappingProxyType(
    {
        torch.bool: "BOOL",
        torch.uint8: "U8",
        torch.int8: "I8",
        torch.int16: "I16",
        torch.int32: "I32",
        torch.int64: "I64",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float32: "F32",
        torch.float64: "F64",
    }
)
"""Names of dtypes in safetensors."""


class Dealer:
    """Deals tensors to ranks, each to the rank that has the fewest bytes so far.

    A function of the sizes in their order, so every rank deals alike. No rank gets more than an
    equal share and one tensor.
    """

    def __init__(self, ranks: int) -> None:
        self._loads = [(0, rank) for rank in range(ranks)]  # a heap

    def owner(self, num_bytes: int) -> int:
        """The rank of the next tensor."""
        load, rank = self._loads[0]
        heapq.heapreplace(self._loads, (load + num_bytes, rank))
        return rank


class HostMemory:
    """Host memory that is handed out piece by piece, and all anew after `restart`.

    In large blocks: page-locked memory comes in powers of two, which would waste much of a block
    per tensor.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._blocks: list[Tensor] = []
        self.restart()

    def restart(self) -> None:
        """Give out the same memory again, from its beginning."""
        self._block, self._used_bytes = 0, 0

    def take(self, num_bytes: int) -> Tensor:
        """A piece: (num_bytes,) of uint8, aligned for any dtype."""
        while self._block < len(self._blocks):
            block, start = self._blocks[self._block], self._used_bytes
            if start + num_bytes <= len(block):
                self._used_bytes += -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
                return block[start : start + num_bytes]
            self._block, self._used_bytes = self._block + 1, 0
        size = max(BLOCK_BYTES, num_bytes)
        self._blocks.append(torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned))
        return self.take(num_bytes)

    @property
    def num_bytes(self) -> int:
        """Allocated so far."""
        return sum(map(len, self._blocks))


class Snapshot:
    """This rank's share of the state at one step. Its memory is kept for the next `take`."""

    def __init__(self, rank: int, ranks: int, device: torch.device) -> None:
        self._rank = rank
        self._ranks = ranks
        self._device = device
        self.memory = HostMemory(pinned=device.type == "cuda")
        self.tensors: list[HostTensor] = []
        self.global_bytes = 0
        """Of all ranks' shares together; the same on every rank."""

    def take(self, state: Iterable[tuple[str, Tensor]]) -> None:
        """Copy this rank's share of `state`, which is read to its end: that is collective."""
        self.memory.restart()
        self.tensors = []
        self.global_bytes = 0
        dealer = Dealer(self._ranks)
        for name, value in state:
            num_bytes = value.numel() * value.itemsize
            self.global_bytes += num_bytes
            if dealer.owner(num_bytes) == self._rank:
                self.tensors.append(self._copied(name, value, num_bytes))
        if self._device.type == "cuda":  # the copies were only queued
            torch.cuda.synchronize(self._device)

    def files(self) -> Iterator[tuple[str, list[HostTensor]]]:
        """Names of the files to write, and what goes into each; none without tensors."""
        weights = [tensor for tensor in self.tensors if "/" not in tensor.name]
        optimizer = [tensor for tensor in self.tensors if "/" in tensor.name]
        for kind, tensors in (("weights", weights), ("optimizer", optimizer)):
            if tensors:
                yield f"{kind}-{self._rank:05d}.safetensors", tensors

    def _copied(self, name: str, value: Tensor, num_bytes: int) -> HostTensor:
        piece = self.memory.take(num_bytes)
        piece.view(value.dtype).view(value.shape).copy_(value, non_blocking=True)
        return HostTensor(name, DTYPES[value.dtype], tuple(value.shape), piece.numpy().data)
