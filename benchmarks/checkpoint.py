"""P9: for how long training stands still for a checkpoint, against torch.save of the same state.

    torchrun --nproc-per-node 2 benchmarks/checkpoint.py [--pairs 8] [--hidden 512] [--layers 8]

Both in one run, in turn, on DDP: torch.save of model and optimizer by rank 0 while the others wait,
as training scripts do; and the Saver, over as many windows as its save takes. Blocked is what
`after_step` takes beyond what it takes with no save under way.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from gradacc_dist.checkpoint.saver import Saver
from gradacc_dist.checkpoint.state import RunState
from gradacc_dist.config.schema import Checkpoint, Config, Engine, Optimizer, Run
from gradacc_dist.data.order import Window
from gradacc_dist.engines import build_engine
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.optim import build_optimizer
from gradacc_dist.signals import Signals
from gradacc_dist.world import World, start

WINDOW_SECONDS = 0.05  # of other work between two ends of a window


def main() -> None:
    """Print both times, their ratio, and the spread."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with start(timeout_seconds=600) as world:
        folder = Path(world.share_text(tempfile.mkdtemp(dir=options.folder))[0])
        try:
            measure(world, folder, options)
        finally:
            dist.barrier()
            shutil.rmtree(folder, ignore_errors=True)


def measure(world: World, folder: Path, options: argparse.Namespace) -> None:
    """Interleaved pairs, after one of each that does not count."""
    optimizer: list[torch.optim.Optimizer] = []

    def build(module: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer.append(build_optimizer(Optimizer(), module))
        return optimizer[-1]

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16_384,
            hidden_size=options.hidden,
            intermediate_size=4 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=8,
        )
    )
    module = ObjectiveModule(model, CausalLM())
    engine = build_engine(Engine(), module, build, world, environ={})
    for parameter in engine.module.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer[-1].step()
    optimizer[-1].zero_grad()
    (folder / "ledger.jsonl").write_text("{}\n")
    config = Config(run=Run(output_dir=folder), checkpoint=Checkpoint(every_minutes=None))
    notes: list[str] = []
    saver = Saver(config, engine, describe, Signals(), notes.append, lambda: None, world)
    torch_saves, ours = [], []
    for pair in range(options.pairs + 1):
        torch_saves.append(by_torch(world, engine.module.model, optimizer[-1], folder))
        ours.append(by_saver(world, saver, step=pair + 1))
    report(world, model, torch_saves, ours, notes)


def by_torch(
    world: World, model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path
) -> float:
    """Seconds until all ranks may go on."""
    dist.barrier()
    begun = time.perf_counter()
    if world.is_main:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / "torch.pt")
    dist.barrier()
    return time.perf_counter() - begun


def by_saver(world: World, saver: Saver, step: int) -> float:
    """Seconds in all the ends of windows until the checkpoint is complete, on the slowest rank."""
    window = Window(step, 0, torch.arange(1).numpy(), step)
    blocked, is_first = 0.0, True
    while is_first or saver._save is not None:
        time.sleep(WINDOW_SECONDS)
        row = saver.news()
        # SIGUSR1 on rank 0 asks for the save.
        row[0] = float(is_first and world.is_main)
        news = world.share_row(row).wait()
        begun = time.perf_counter()
        saver.after_step(window, step, news, is_last=False)
        blocked += time.perf_counter() - begun
        is_first = False
    return float(world.share_row([blocked]).wait().max())


def describe(window: Window, num_updates: int) -> RunState:
    """Any state will do."""
    return RunState(
        step=window.step,
        num_updates=num_updates,
        examples_seen=window.examples_seen,
        epoch=0,
        seed=0,
        num_steps=10**6,
        loss_scale=None,
        loss_scale_updates=0,
        loss_scale_borne=0,
        ledger_bytes=3,
        elapsed_seconds=1.0,
        tracker_id=None,
        version="benchmark",
        identity={},
        data_sha256="0" * 64,
        held_out_sha256=None,
        layout={},
    )


def report(
    world: World,
    model: torch.nn.Module,
    torch_saves: list[float],
    ours: list[float],
    notes: list[str],
) -> None:
    """Medians and ranges; the first save, which allocates, is told apart."""
    if not world.is_main:
        return
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{num_parameters:,} parameters, {world.ranks} ranks on {world.device.type}")
    for name, (first, *rest) in (("torch.save", torch_saves), ("Saver", ours)):
        print(
            f"{name:10}  first {first:.3f} s, then median {statistics.median(rest):.4f} s "
            f"({min(rest):.4f} to {max(rest):.4f} in {len(rest)})"
        )
    ratios = [theirs / own for theirs, own in zip(torch_saves[1:], ours[1:], strict=True)]
    print(
        f"ratio: median 1/{statistics.median(ratios):.1f} "
        f"(1/{min(ratios):.1f} to 1/{max(ratios):.1f}); first 1/{torch_saves[0] / ours[0]:.1f}"
    )
    print(f"last: {notes[-1]}")


if __name__ == "__main__":
    main()
