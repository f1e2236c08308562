"""Where every rank's weights come from."""

from __future__ import annotations

from itertools import chain

import torch.distributed as dist
from torch import nn

from gradacc_dist.world import World


def take_weights_of_rank_0(module: nn.Module, world: World) -> None:
    """As DDP does: shards of unlike models would make one that nobody had. Collective."""
    for value in chain(module.parameters(), module.buffers()) if world.ranks > 1 else ():
        moved = value.detach().to(world.device)
        dist.broadcast(moved, src=0)
        value.detach().copy_(moved)
