"""`gradacc_dist.train` that saves, synchronously and on rank 0, every SAVE_EVERY steps.

Stands in for the saving of the training loop, so that coming back can be tested without it. With
KILL_AT it ends there as by SIGKILL, once that step's line is in the ledger.
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from gradacc_dist import __version__, training
from gradacc_dist.checkpoint.shards import HostTensor, write_shard
from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.checkpoint.store import CHECKPOINTS, Store
from gradacc_dist.config.identity import identity
from gradacc_dist.observe.observer import Observer
from gradacc_dist.train import main

NAMES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.int64: "I64"}
EVERY, KILL_AT = int(os.environ["SAVE_EVERY"]), int(os.environ.get("KILL_AT", "0"))


def host_tensor(name, value):
    whole = value.detach().cpu().contiguous()
    data = whole.reshape(-1).view(torch.uint8).numpy().tobytes()
    return HostTensor(name, NAMES[whole.dtype], tuple(whole.shape), data)


def save(engine, world, config, data, num_updates, record, num_steps):
    tensors = [host_tensor(name, value) for name, value in engine.state()]
    if not world.is_main:
        return
    folder = config.run.folder
    store = Store(folder / CHECKPOINTS)
    saving = store.begin(record.step)
    shard = write_shard(saving / "weights-00000.safetensors", tensors)
    state = RunState(
        step=record.step,
        num_updates=num_updates,
        examples_seen=record.examples_seen,
        epoch=record.epoch,
        seed=config.run.seed,
        num_steps=num_steps,
        loss_scale=engine.loss_scale,
        ledger_bytes=(folder / "ledger.jsonl").stat().st_size,
        elapsed_seconds=100.0,
        tracker_id=None,
        version=__version__,
        identity=identity(config),
        data_sha256=data.hashes[0],
        held_out_sha256=data.hashes[1],
        layout={"ranks": world.ranks, "engine": engine.name},
    )
    store.commit(record.step, [shard], state.model_dump())


def train_windows(config, data, order, beginning, engine, observer, world):
    num_updates = beginning.num_updates
    report = Observer.train

    def report_and_save(self, record):
        nonlocal num_updates
        report(self, record)
        num_updates += record.skipped is None
        if record.step % EVERY == 0 or record.step == beginning.num_steps:
            save(engine, world, config, data, num_updates, record, beginning.num_steps)
        if record.step == KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    Observer.train = report_and_save
    sound(config, data, order, beginning, engine, observer, world)


sound, training.train_windows = training.train_windows, train_windows
sys.exit(main(sys.argv[1:]))
