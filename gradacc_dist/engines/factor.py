"""What an engine does to gradients on their way: measured before training, not assumed.

A throw-away window of filler is run through the engine. Its loss is worth nothing; instead, on
its way from the loss into the engine, each parameter's gradient is replaced by a number that this
rank alone brings, times whatever factor the engine put on the loss. What the engine hands over
for an update must then be, in every element of every parameter, the sum of those numbers over
ranks and micro-batches, divided by the engine's `reduction_factor`. A mean where a sum was
expected, a second division, a rank or micro-batch left out, a bucket or block treated unlike the
others: each gives another number, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradacc_dist.data.batch import collate
from gradacc_dist.engines.engine import Engine
from gradacc_dist.errors import EngineError
from gradacc_dist.objectives.terms import ObjectiveModule
from gradacc_dist.world import World

# What each micro-batch of the window counts: unequal, so that one left out can be told.
TURNS = (1.0, 2.0)
# A power of two, so that it rounds nothing, and small, so that float16 under its usual loss scale
# of 2^16 does not overflow.
UNIT = 2.0**-20
# Roundings between the numbers put in and the one read, in units of its format.
ROUNDINGS = 8


def confirm_reduction_factor(
    engine: Engine, world: World, accumulates: torch.dtype = torch.float32
) -> None:
    """Raise EngineError, on every rank, unless `engine` reduces as it promises. Collective.

    `accumulates`: the format of the sums, where it is not that of what is read.
    Costs a forward and backward of two positions, twice, and no copy of the model.
    """
    weights = [_weight(rank, world.ranks) for rank in range(world.ranks)]
    probed = _run(engine, weights[world.rank])
    expected = sum(weights) * sum(TURNS) * UNIT
    row = _deviations(engine, probed, expected * _shrunk(engine), accumulates)
    engine.discard()
    matrix = world.share_row(row).wait()
    if not matrix[:, 0].any():
        raise EngineError(
            f"engine {engine.name}: what it does to gradients cannot be measured, because none "
            "arrived at a parameter; choose another engine.name, or look whether the model's "
            "modules are called at all",
            same_on_all_ranks=True,
        )
    wrong = matrix[:, 3] > 0
    if wrong.any():
        rank = int(wrong.nonzero()[0])
        _, low, high, _, index = matrix[rank].tolist()
        parameter = [name for name, _ in engine.module.model.named_parameters()][int(index)]
        raise EngineError(
            _complaint(engine, weights, (low, high), f"{parameter} on rank {rank}"),
            same_on_all_ranks=True,
        )


def _weight(rank: int, ranks: int) -> float:
    """What a rank counts. Without one rank the sum is smaller by at least about 2/3 of 1/ranks.

    Rounded to bfloat16, in which a gradient may have to carry it.
    """
    return float(torch.tensor(float(ranks + 1 + rank)).bfloat16())


def _run(engine: Engine, weight: float) -> set[str]:
    """The throw-away window. Returns the names of the parameters that were given a number."""
    filler = collate(0, [])
    probe = _Probe(engine.module)
    with probe.attached():
        for turn, share in enumerate(TURNS):
            probe.number = weight * share * UNIT * _shrunk(engine)
            with engine.micro_batch(last=turn == len(TURNS) - 1):
                engine.backward(torch.stack(list(engine.forward(filler).values())).sum())
    return probe.names


class _Probe:
    """Replaces gradients by `number`, times the factor that the engine put on the loss."""

    def __init__(self, module: ObjectiveModule) -> None:
        self.number = 0.0
        self.names: set[str] = set()
        self._module = module
        self._loss_factor = math.nan
        self._hooked: dict[int, tuple[nn.Parameter, RemovableHandle]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within, every backward is replaced."""
        # A sharded engine puts whole parameters in place just before a module's forward.
        handles = [
            inside.register_forward_pre_hook(partial(self._hook_parameters, prefix))
            for prefix, inside in self._module.model.named_modules()
        ]
        handles.append(self._module.register_forward_hook(self._hook_sums))
        try:
            yield
        finally:
            for _, handle in self._hooked.values():
                handle.remove()
            for handle in handles:
                handle.remove()

    def _hook_parameters(self, prefix: str, inside: nn.Module, _inputs: object) -> None:
        for name, parameter in inside.named_parameters(prefix, recurse=False):
            if parameter.requires_grad and torch.is_grad_enabled():
                self.names.add(name)
                if id(parameter) not in self._hooked:
                    handle = parameter.register_hook(self._replace)
                    self._hooked[id(parameter)] = (parameter, handle)

    def _hook_sums(self, _module: nn.Module, _inputs: object, sums: dict[str, Tensor]) -> None:
        # In here rather than on the loss, to see what a wrapper does to the sums it returns.
        for total in sums.values():
            total.register_hook(self._read_loss_factor)

    def _read_loss_factor(self, gradient: Tensor) -> None:
        self._loss_factor = float(gradient)

    def _replace(self, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, self.number * self._loss_factor)


def _shrunk(engine: Engine) -> float:
    """So that a loss scale above the usual one does not make float16 overflow either."""
    return min(1.0, 2.0**16 / (engine.loss_scale or 1.0))


def _deviations(
    engine: Engine, probed: set[str], expected: float, accumulates: torch.dtype
) -> list[float]:
    """This rank's row: parameters read, and of the worst one the smallest and the largest value
    as parts of the sum over the ranks, whether they are wrong, and its index."""
    indices = {name: i for i, (name, _) in enumerate(engine.module.model.named_parameters())}
    right = 1 / engine.reduction_factor
    worst = [0.0, right, right, 0.0, 0.0]
    worst_miss, num_read = 0.0, 0
    for name, part in engine.local_gradients():
        if name not in probed or not part.numel():
            continue
        num_read += 1
        low, high = (float(value) / expected for value in part.detach().aminmax())
        miss = max(abs(low / right - 1), abs(high / right - 1))
        # Not `>`: a gradient that is not a number misses by more than any.
        if not miss <= worst_miss:
            # Sums in a lower format round at most twice by half its eps: the weights fit it.
            lowest = torch.finfo(accumulates).eps if accumulates != torch.float32 else 0.0
            is_wrong = not miss <= max(ROUNDINGS * torch.finfo(part.dtype).eps, lowest)
            worst = [0.0, low, high, float(is_wrong), float(indices[name])]
            worst_miss = miss if math.isfinite(miss) else math.inf
    return [float(num_read), *worst[1:]]


def _complaint(
    engine: Engine, weights: Sequence[float], measured: tuple[float, float], where: str
) -> str:
    low, high = measured
    got = f"{low:.6g}" if low == high else f"between {low:.6g} and {high:.6g}"
    causes = [
        cause for factor, cause in _faults(weights) if math.isclose(low, factor, rel_tol=1e-3)
    ]
    mode = "window" if engine.reduces_once else "micro_batch"
    return (
        f"engine {engine.name} on {len(weights)} rank(s), engine.reduce: {mode}: the gradients it "
        f"hands over are {got} times their sum over ranks and micro-batches ({where}), where "
        f"{1 / engine.reduction_factor:.6g} times is expected (reduction factor "
        f"{engine.reduction_factor:g}). "
        + (f"It looks as if {', or '.join(causes)}. " if causes else "")
        + "Training would follow wrong gradients and not show it: remove what changes gradients "
        "(a communication hook, a wrapper, a setting of the engine's own), or choose another "
        "engine.name"
    )


def _faults(weights: Sequence[float]) -> Iterator[tuple[float, str]]:
    """Known mistakes, by the part of the sum over ranks and micro-batches that they leave."""
    ranks, turns = len(weights), len(TURNS)
    if ranks > 1:
        yield 1.0, "the engine sums over the ranks where it promised to average"
        yield 1 / ranks, "the engine averages over the ranks where it promised a sum"
        yield 1 / ranks**2, "it divides by the number of ranks twice"
        again = (ranks * TURNS[0] + sum(TURNS[1:])) / sum(TURNS)
        yield again, "each micro-batch reduces again what earlier ones had reduced"
        yield float(ranks), "it counts every rank as often as there are ranks"
    for rank, weight in enumerate(weights) if ranks > 1 else ():
        yield 1 - weight / sum(weights), f"the gradients of rank {rank} are left out"
        yield weight / sum(weights), f"the gradients of rank {rank} are all that is left"
    yield 1 / turns, "it divides by the number of accumulated micro-batches"
    yield 1 / (turns * ranks), "it averages over ranks and accumulated micro-batches"
    yield TURNS[-1] / sum(TURNS), "only the last micro-batch's gradients are kept"
    yield TURNS[0] / sum(TURNS), "the last micro-batch's gradients are lost"
    yield 0.0, "the gradients are lost"
