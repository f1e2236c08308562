"""Runs of a small case with checkpoints, on a pool's ranks, through the product's own step."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from distributed.cases import Case
from distributed.product import ListedTokens, case_windows
from safetensors import safe_open

from gradacc_dist.checkpoint import disk
from gradacc_dist.checkpoint.saver import Saver
from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.config.schema import Checkpoint, Config, Engine, Optimizer, Run
from gradacc_dist.data.order import Window
from gradacc_dist.engines import build_engine
from gradacc_dist.errors import GradaccError
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.optim import build_optimizer
from gradacc_dist.signals import Signals
from gradacc_dist.step import StepSettings, train_step
from gradacc_dist.windows import Assembler, agreed_windows
from gradacc_dist.world import World

STEPS = 6
CASE = Case((9,) * 4, (1.0,) * 4, window=4, steps=STEPS, dtype="float32")
SETTINGS = StepSettings("window", 0, 1.0, on_zero_items="skip", on_non_finite="error")

Interfere = Callable[[World, Window, Signals], None]
"""Called on every rank in the midst of each step."""


@dataclass
class Ran:
    """What one rank saw of a run."""

    steps: int = 0
    notes: list[str] = field(default_factory=list)
    error: GradaccError | None = None
    newest: Path | None = None
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    collectives: list[tuple[int, int]] = field(default_factory=list)
    """All-reduces and gathers of each step, of those that ranks agree by."""
    share_bytes: list[int] = field(default_factory=list)
    """In the snapshot of this rank, and of all ranks."""
    memory_bytes: list[int] = field(default_factory=list)
    """Allocated for snapshots after each step."""


def run(
    world: World,
    folder: Path,
    checkpoint: Mapping[str, object],
    engine: str = "auto",
    failing_ranks: tuple[int, ...] = (),
    interfere: Interfere | None = None,
    case: Case = CASE,
    rank_1: Mapping[str, object] = {},
) -> Ran:
    """Train with AdamW; writing fails on `failing_ranks`. `rank_1`: what differs there."""
    own = {**checkpoint, **rank_1} if world.rank == 1 else checkpoint
    config = Config(run=Run(output_dir=folder), checkpoint=Checkpoint(**own))
    if world.is_main:
        folder.mkdir(parents=True)
        (folder / "ledger.jsonl").write_text("{}\n")
    optimizer = Optimizer(name="adamw", learning_rate=1e-3)
    built = build_engine(
        Engine(name=engine),
        ObjectiveModule(case.model(), CausalLM()),
        lambda module: build_optimizer(optimizer, module),
        world,
        environ={},
    )
    ran, signals = Ran(), Signals()
    signals.defer()
    saver = Saver(config, built, describe, signals, ran.notes.append, lambda: None, world)
    tokens = ListedTokens(case.examples())
    assembler = Assembler(tokens, built.module.objective, 1, world.rank, world.ranks, "test")
    fails = failing() if world.rank in failing_ranks else nullcontext()
    try:
        agreed = agreed_windows(case_windows(case), assembler, world)
        with fails, counting() as counted, saver, closing(agreed):
            for local, agreement in agreed:
                before = counted()
                if interfere is not None:
                    interfere(world, local.window, signals)
                step = local.window.step
                outcome = train_step(built, local, agreement, SETTINGS, 1e-3, world, saver.news)
                if outcome.error is not None:
                    raise outcome.error
                ran.steps = step
                news = outcome.window_loss.news
                saver.after_step(local.window, step, news, is_last=step == case.steps)
                after = counted()
                ran.collectives.append((after[0] - before[0], after[1] - before[1]))
                ran.memory_bytes.append(saver._snapshot.memory.num_bytes)
    except GradaccError as error:
        ran.error = error
    ran.newest = saver.newest
    snapshot = saver._snapshot
    ran.share_bytes = [sum(t.num_bytes for t in snapshot.tensors), snapshot.global_bytes]
    ran.state = {name: value.clone() for name, value in built.state()}
    return ran


def describe(window: Window, num_updates: int) -> RunState:
    return RunState(
        step=window.step,
        num_updates=num_updates,
        examples_seen=window.examples_seen,
        epoch=window.epoch,
        seed=0,
        num_steps=STEPS,
        loss_scale=None,
        loss_scale_updates=0,
        loss_scale_borne=0,
        ledger_bytes=3,
        elapsed_seconds=1.0,
        tracker_id=None,
        version="test",
        identity={},
        data_sha256="0" * 64,
        held_out_sha256=None,
        layout={},
    )


def failing():
    """The disk is full in this process."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return mock.patch.object(disk, "_write_all", side_effect=full)


class counting:  # noqa: N801 - reads as a function
    """Counts the collectives of the agreement group: () -> (all-reduces, gathers)."""

    def __enter__(self) -> Callable[[], tuple[int, int]]:
        dist = torch.distributed
        self._patches = [
            mock.patch.object(dist, name, side_effect=getattr(dist, name))
            for name in ("all_reduce", "all_gather_object")
        ]
        mocks = [patch.__enter__() for patch in self._patches]
        return lambda: tuple(m.call_count for m in mocks)

    def __exit__(self, *error: object) -> None:
        for patch in self._patches:
            patch.__exit__(*error)


def on_rank(rank: int, step: int, number: int) -> Interfere:
    """The signal `number` reaches `rank` during `step`."""
    return partial(_signal, rank, step, number)


def _signal(rank: int, at: int, number: int, world: World, window: Window, got: Signals) -> None:
    if (world.rank, window.step) == (rank, at):
        got.handle(number, None)


def read(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by the format's own library; none twice."""
    tensors = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                assert name not in tensors
                assert path.name.startswith("optimizer" if "/" in name else "weights")
                tensors[name] = file.get_tensor(name)
    return tensors


def saved_steps(folder: Path) -> list[int]:
    """Of the complete checkpoints; nothing else may be there but `latest`."""
    names = {path.name for path in (folder / "checkpoints").iterdir()} - {"latest"}
    assert all(name[5:].isdigit() for name in names), names
    for name in names:
        state = json.loads((folder / "checkpoints" / name / "state.json").read_text())
        assert state["step"] == int(name[5:])
    return sorted(int(name[5:]) for name in names)
