"""How fast the ranks reach each other: `accelerate launch -m gradacc_dist.bandwidth`.

All ranks together, by the all-reduce that gradients take; then each rank's link alone. Trains
nothing and writes nothing: `gradacc doctor` starts it where a run would start.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gradacc_dist.cli import run_command

if TYPE_CHECKING:
    from torch import Tensor

    from gradacc_dist.config.resolved import Resolved
    from gradacc_dist.world import World

PURPOSE = "Measure how fast the ranks reach each other."
REPEATS = 3
MEGABYTE = 10**6
PATIENCE_SECONDS = 60.0
"""gloo tries five times as long before it says that ranks do not reach each other."""

SLOW = 0.5
"""A link is slow below this part of the median of all."""

SIZES = {"cpu": (1, 4, 16), "cuda": (1, 16, 256)}
"""Megabytes that all ranks sum."""

LINK_SIZE = {"cpu": 4, "cuda": 64}
"""Megabytes sent each way to measure a link."""


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point. Returns the process's exit code."""
    return run_command("gradacc_dist.bandwidth", PURPOSE, _measure, argv)


def ring(hostnames: Sequence[str]) -> list[int]:
    """The ranks in a circle in which neighbours are, if it can be, on different hosts."""
    before: Counter[str] = Counter()
    turns = []
    for rank, host in enumerate(hostnames):
        turns.append((before[host], rank))
        before[host] += 1
    return [rank for _, rank in sorted(turns)]


def links(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Each neighbour pair of the circle, once."""
    pairs = zip(ranks, [*ranks[1:], *ranks[:1]], strict=True)
    return list(dict.fromkeys((min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]))


def rank_speeds(measured: Mapping[tuple[int, int], float]) -> dict[int, float]:
    """Each rank's speed, of those of its links: the better one, for a slow one has two ends."""
    speeds = defaultdict(list)
    for pair, speed in measured.items():
        for rank in pair:
            speeds[rank].append(speed)
    return {rank: max(of_links) for rank, of_links in sorted(speeds.items())}


def summary(speeds: Mapping[int, float], hostnames: Sequence[str]) -> list[str]:
    """For people: each rank, the slowest, and those that are far below the others. MB/s."""
    median = statistics.median(speeds.values())

    def named(rank: int) -> str:
        return f"rank {rank} (host {hostnames[rank]})"

    lines = [f"{named(rank)}: {speed:,.0f} MB/s" for rank, speed in speeds.items()]
    slowest = min(speeds, key=lambda rank: speeds[rank])
    lines.append(
        f"slowest: {named(slowest)} with {speeds[slowest]:,.0f} MB/s, median {median:,.0f}"
    )
    for rank, speed in speeds.items():
        if speed < SLOW * median:
            lines.append(
                f"warning: {named(rank)} has {speed / median:.0%} of the median; see to its "
                "network (cable, switch port, speed of the interface, NCCL_SOCKET_IFNAME)"
            )
    return lines


def _measure(resolved: Resolved) -> None:
    """Collective over the ranks that the launcher started; rank 0 speaks."""
    from gradacc_dist.world import start

    with start(min(PATIENCE_SECONDS, resolved.config.engine.timeout_seconds)) as world:
        lines = _all_reduce_lines(world)
        if world.ranks > 1:
            speeds = rank_speeds(_link_speeds(world))
            lines += ["each rank's link alone:", *summary(speeds, world.hostnames)]
        if world.is_main:
            print("\n".join(lines), flush=True)


def _all_reduce_lines(world: World) -> list[str]:
    if world.ranks == 1:
        return ["bandwidth: one rank; there is no link to measure"]
    lines = [f"all-reduce over {world.ranks} ranks ({world.device.type}), per rank:"]
    for megabytes in SIZES[world.device.type]:
        seconds = _all_reduce_seconds(world, megabytes)
        # What each rank sends, and receives, in a ring: all but its own part, twice.
        moved = 2 * (world.ranks - 1) / world.ranks * megabytes
        lines.append(f"{megabytes:>5} MB: {seconds * 1000:,.1f} ms, {moved / seconds:,.0f} MB/s")
    return lines


def _all_reduce_seconds(world: World, megabytes: int) -> float:
    """The best of a few, as rank 0 sees it. Collective."""
    import torch.distributed as dist

    values = _values(world, megabytes)
    times = []
    for _ in range(1 + REPEATS):
        _meet(world)
        begun = _now(world)
        dist.all_reduce(values)
        times.append(_now(world) - begun)
    return min(times[1:])  # connections are made in the first


def _link_speeds(world: World) -> dict[tuple[int, int], float]:
    """MB/s of each link of the circle, one after the other. Collective; the same on every rank."""
    pairs = links(ring(world.hostnames))
    mine = []
    for pair in pairs:
        _meet(world)
        seconds = _round_trip_seconds(world, pair) if world.rank in pair else 0.0
        # The lower rank of a pair keeps the time, from the first byte out to the last one back.
        speed = 2 * LINK_SIZE[world.device.type] / seconds if world.rank == pair[0] else 0.0
        mine.append(speed)
    speeds = world.share_row(mine).wait().sum(dim=0).tolist()
    return dict(zip(pairs, speeds, strict=True))


def _round_trip_seconds(world: World, pair: tuple[int, int]) -> float:
    import torch.distributed as dist

    first, second = pair
    values = _values(world, LINK_SIZE[world.device.type])
    times = []
    for _ in range(1 + REPEATS):
        begun = _now(world)
        if world.rank == first:
            dist.send(values, second)
            dist.recv(values, second)
        else:
            dist.recv(values, first)
            dist.send(values, first)
        times.append(_now(world) - begun)
    return min(times[1:])


def _values(world: World, megabytes: int) -> Tensor:
    import torch

    return torch.zeros(megabytes * MEGABYTE // 4, dtype=torch.float32, device=world.device)


def _meet(world: World) -> None:
    """All begin together; who has nothing to send waits. Collective."""
    world.share_row([1.0]).wait()


def _now(world: World) -> float:
    """Seconds, once the device has done what it was given."""
    import time

    import torch

    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
