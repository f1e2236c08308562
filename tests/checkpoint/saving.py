"""Saves as two ranks would make them, with content that tells its step and its mark."""

from __future__ import annotations

import struct
from pathlib import Path

from gradacc_dist.checkpoint.shards import HostTensor, write_shard
from gradacc_dist.checkpoint.store import Checkpoint, Store
from gradacc_dist.checkpoint.verify import read_state

RANKS = 2


def tensors(rank: int, mark: int) -> list[HostTensor]:
    values = struct.pack("<60f", *(rank + mark + n for n in range(60)))
    return [HostTensor(f"layer.{rank}.weight", "F32", (3, 20), values)]


def save(folder: Path, step: int, mark: int = 0) -> Path:
    """`mark` tells two saves of one step apart."""
    store = Store(folder)
    saving = store.begin(step)
    shards = [
        write_shard(saving / f"weights-{rank:05d}.safetensors", tensors(rank, step + mark))
        for rank in range(RANKS)
    ]
    return store.commit(step, shards, {"step": step, "mark": mark})


def content(checkpoint: Checkpoint) -> tuple[int, int]:
    """Step and mark of a checkpoint, after a look at all that it holds."""
    state = read_state(checkpoint.folder, checkpoint.manifest)
    assert checkpoint.manifest.step == state["step"]
    assert set(checkpoint.manifest.tensors()) == {"layer.0.weight", "layer.1.weight"}
    for rank in range(RANKS):
        (tensor,) = tensors(rank, state["step"] + state["mark"])
        shard = checkpoint.folder / checkpoint.manifest.tensors()[tensor.name]
        assert shard.read_bytes().endswith(tensor.data)
    return state["step"], state["mark"]


def newest(folder: Path) -> tuple[int, int] | None:
    """Step and mark of the newest complete checkpoint, none newer being passed over."""
    checkpoint, passed_over = Store(folder).newest_complete()
    assert not passed_over
    return checkpoint and content(checkpoint)
