"""One optimizer step: run a window's micro-batches, then update the weights or say why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from gradacc_dist.agreement import Agreement
from gradacc_dist.denominator import Denominator, Mode
from gradacc_dist.engines import Engine
from gradacc_dist.errors import GradaccError, NonFiniteError, ZeroItemsError
from gradacc_dist.windows import LocalWindow
from gradacc_dist.world import World


@dataclass(frozen=True)
class StepSettings:
    """What a step needs of the configuration. A policy is "error" or "skip"."""

    mode: Mode
    seed: int
    max_grad_norm: float | None
    on_zero_items: str
    on_non_finite: str


@dataclass(frozen=True)
class WindowLoss:
    """What a window's forwards gave over all ranks, the same on each.

    `loss` is in the objective's unit; `sums` are the undivided term sums. Both come from float64
    accumulators that nothing else touches. `news`: (ranks, k), what each rank told the others.
    """

    loss: float
    sums: Mapping[str, float]
    non_finite_ranks: Sequence[int]
    news: Tensor


@dataclass(frozen=True)
class StepOutcome:
    """What became of a window.

    `grad_norm` is before clipping, None where it was not taken; `skipped` says why the weights
    were left; `error` is what to raise, once the step is recorded, where the policy is to stop;
    `loss_scale` was on the loss, under float16.
    """

    window_loss: WindowLoss
    grad_norm: float | None
    skipped: str | None = None
    error: GradaccError | None = None
    loss_scale: float | None = None


News = Callable[[], Sequence[float]]
"""What this rank has to tell at the end of a window: as many numbers on every rank."""


def no_news() -> Sequence[float]:
    """Nothing to tell."""
    return ()


def train_step(
    engine: Engine,
    local: LocalWindow,
    agreement: Agreement,
    settings: StepSettings,
    learning_rate: float,
    world: World,
    news: News = no_news,
) -> StepOutcome:
    """Train on one window. Collective; every rank takes the same decision.

    `news` travel with the loss, in a collective that is waited for anyway.
    """
    if not agreement.has_items:
        error = _zero_items(local) if settings.on_zero_items == "error" else None
        nothing = WindowLoss(float("nan"), {}, (), world.share_row(news()).wait())
        return StepOutcome(nothing, None, "zero_items", error)
    loss_scale = engine.loss_scale
    denominator = Denominator(settings.mode, agreement, local.num_micro_batches)
    window_loss = accumulate(engine, local, denominator, settings.seed, world, news)
    if window_loss.non_finite_ranks:
        engine.discard()
        grad_norm = None
    else:
        update = engine.update(learning_rate, settings.max_grad_norm)
        grad_norm = update.grad_norm
        # A loss scale that was too high mends itself: no reason to stop.
        if update.skipped != "non_finite":
            return StepOutcome(window_loss, grad_norm, update.skipped, loss_scale=loss_scale)
    error = None
    if settings.on_non_finite == "error":
        error = _non_finite(local, window_loss, grad_norm, world)
    return StepOutcome(window_loss, grad_norm, "non_finite", error, loss_scale)


def accumulate(
    engine: Engine,
    local: LocalWindow,
    denominator: Denominator,
    seed: int,
    world: World,
    news: News = no_news,
) -> WindowLoss:
    """Forward and backward of every micro-batch; the engine then holds the window's gradients.

    Collective. The reported numbers are kept apart from the tensors that run backward.
    """
    weights = engine.module.objective.weights
    totals = torch.zeros(1 + len(weights), dtype=torch.float64, device=world.device)
    for turn, (batch, items) in enumerate(zip(local.micro_batches, local.local_items, strict=True)):
        # Dropout follows the micro-batch, not the rank that happens to run it.
        torch.manual_seed(micro_batch_seed(seed, local.window.step, batch.index))
        with engine.micro_batch(last=turn == len(local.micro_batches) - 1):
            sums = engine.forward(batch)
            engine.backward(denominator.loss(sums, items, weights, engine.reduction_factor))
        reported = {term: total.detach().double() for term, total in sums.items()}
        loss = denominator.loss(reported, items, weights, reduction_factor=1.0)
        totals += torch.stack([loss, *(reported[term] for term in weights)])
    return _over_all_ranks(totals.tolist(), list(weights), world, news)


def micro_batch_seed(seed: int, step: int, index: int) -> int:
    """Seed of the random numbers in one micro-batch: the same wherever it runs."""
    return int.from_bytes(sha256(f"{seed} {step} {index}".encode()).digest()[:8])


def _over_all_ranks(
    totals: list[float], terms: Sequence[str], world: World, news: News
) -> WindowLoss:
    shared = world.share_row([*totals, *news()]).wait()
    matrix, told = shared[:, : len(totals)], shared[:, len(totals) :]
    finite = matrix.isfinite().all(dim=1).tolist()
    loss, *sums = matrix.sum(dim=0).tolist()
    return WindowLoss(
        loss,
        dict(zip(terms, sums, strict=True)),
        [rank for rank, is_finite in enumerate(finite) if not is_finite],
        told,
    )


def _zero_items(local: LocalWindow) -> GradaccError:
    window = local.window
    return ZeroItemsError(
        f"step {window.step}: none of the window's {len(window.example_ids)} examples has a "
        f"supervised token (first example ids: {window.example_ids[:5].tolist()}); check the data "
        "and data.max_length, or set --window.on_zero_items skip",
        same_on_all_ranks=True,
    )


def _non_finite(
    local: LocalWindow, loss: WindowLoss, grad_norm: float | None, world: World
) -> GradaccError:
    step = local.window.step
    if loss.non_finite_ranks:
        where = ", ".join(world.describe_rank(rank) for rank in loss.non_finite_ranks)
        what = f"the loss is {loss.loss} (from {where})"
    else:
        what = f"the loss is {loss.loss:.6g} but the gradient norm is {grad_norm}"
    return NonFiniteError(
        f"step {step}: {what}; the weights are as after step {step - 1}. Lower "
        "optimizer.learning_rate or raise schedule.warmup_steps, or set "
        "--optimizer.on_non_finite skip to leave such windows out",
        same_on_all_ranks=True,
    )
