"""Examples → the tensors of one micro-batch, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradacc_dist.data.tokens import Example
from gradacc_dist.items import IGNORED_LABEL

# Padding is masked from attention and from the loss, so its id is only required to exist.
PADDING_ID = 0


@dataclass(frozen=True)
class MicroBatch:
    """What one rank runs through one forward and backward.

    `input_ids`, `labels`, `attention_mask`: (examples, length) int64. `index` is the cell's number
    in its window, the same on every cluster. Filler is one row of padding without a label.
    """

    index: int
    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    num_examples: int
    input_tokens: int

    @property
    def padded_tokens(self) -> int:
        """Positions computed, padding and filler included."""
        return self.input_ids.numel()

    def to(self, device: torch.device) -> MicroBatch:
        """A copy whose tensors are on `device`."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
        )


def collate(index: int, examples: Sequence[Example]) -> MicroBatch:
    """Pad `examples` to the longest of them; no examples make filler."""
    # Two positions: the shortest row in which one position predicts another.
    length = max((len(example.input_ids) for example in examples), default=2)
    rows = max(len(examples), 1)
    input_ids = torch.full((rows, length), PADDING_ID, dtype=torch.int64)
    labels = torch.full((rows, length), IGNORED_LABEL, dtype=torch.int64)
    attention_mask = torch.zeros((rows, length), dtype=torch.int64)
    for row, example in enumerate(examples):
        size = len(example.input_ids)
        input_ids[row, :size] = torch.as_tensor(example.input_ids)
        labels[row, :size] = torch.as_tensor(example.labels)
        attention_mask[row, :size] = 1
    if not examples:
        # A row that attends to nothing is NaN in some attention kernels.
        attention_mask[:] = 1
    input_tokens = sum(len(example.input_ids) for example in examples)
    return MicroBatch(index, input_ids, labels, attention_mask, len(examples), input_tokens)
