"""Before the first step: room for the run's checkpoints, in a folder that all nodes share."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from gradacc_dist.checkpoint.disk import require_space, write_new
from gradacc_dist.checkpoint.store import Store
from gradacc_dist.config.schema import Config
from gradacc_dist.errors import ConfigError, DiskError
from gradacc_dist.world import World

# Some network file systems remember for seconds that a file was not there.
SEEN_SECONDS = 15.0


def require_room(
    config: Config, shapes: Mapping[str, tuple[int, ...]], num_steps: int, store: Store
) -> None:
    """Refuse a disk that cannot hold what the run will leave at the same time.

    An estimate, from the weights' shapes: the optimizer's state does not exist yet. Not
    collective. Raises DiskError.
    """
    weights_bytes = sum(map(math.prod, shapes.values())) * _item_bytes(config)
    one_bytes = weights_bytes * (1 + _num_moments(config))
    num = max(1, _num_checkpoints(config, num_steps) - len(store.candidates()))
    exported_bytes = weights_bytes if config.checkpoint.save_model else 0
    require_space(store.folder, one_bytes * num + exported_bytes)


def require_shared_folder(folder: Path, world: World) -> None:
    """Refuse a folder of which each node has its own: a checkpoint would lie in parts. Collective.

    Raises ConfigError, on every rank, naming who does not see it; DiskError as `main_alone` does.
    """
    probe = folder / f".shared-{uuid4().hex}"
    with world.main_alone():
        if world.is_main:
            with DiskError.naming(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_new(probe, [])
    probe = folder / world.share_text(probe.name)[0]
    sees = world.share_row([float(_appears(probe))]).wait()[:, 0].tolist()
    with world.main_alone():
        if world.is_main:
            with DiskError.naming(probe):
                probe.unlink()
    blind = [world.describe_rank(rank) for rank, seen in enumerate(sees) if not seen]
    if blind:
        raise ConfigError(
            f"run.output_dir: what rank 0 (host {world.hostnames[0]}) writes into {folder} is not "
            f"seen by {', '.join(blind[:3])}{', ...' if len(blind) > 3 else ''}; set "
            "--run.output_dir to a folder that all nodes share",
            same_on_all_ranks=True,
        )


def _appears(path: Path) -> bool:
    end = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _item_bytes(config: Config) -> int:
    """Lower precisions keep their weights in fp32."""
    return 8 if config.precision.compute == "fp64" else 4


def _num_moments(config: Config) -> int:
    """Tensors of the weights' size that the optimizer keeps."""
    optimizer = config.optimizer
    return 2 if optimizer.name == "adamw" else int(optimizer.momentum > 0)


def _num_checkpoints(config: Config, num_steps: int) -> int:
    """Most that exist at once: those kept, those kept for ever, and the one being written."""
    checkpoint = config.checkpoint
    every = checkpoint.keep_every_steps
    num_saves = num_steps
    if checkpoint.every_minutes is None:
        num_saves = 1 + (num_steps // checkpoint.every_steps if checkpoint.every_steps else 0)
    return min(checkpoint.keep + 1 + (num_steps // every if every else 0), num_saves)
