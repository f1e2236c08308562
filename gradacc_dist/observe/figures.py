"""Pictures of a run, drawn from its ledger without matplotlib's global state."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from gradacc_dist.errors import DiskError
from gradacc_dist.observe.ledger import (
    EvalRecord,
    Term,
    TrainRecord,
    comparison_label,
    read,
    show_loss,
)

Floats = NDArray[np.float64]

# The colour-blind safe palette of Okabe and Ito (2008).
BLUE, ORANGE, GREEN, PURPLE, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
INK, FAINT = "#333333", "#DDDDDD"

NOTHING = Term(sum=0.0, count=0.0, value=math.nan)


def loss_figure(ledger_path: Path, out: Path, title: str) -> None:
    """Write a 900 x 600 PNG: loss above, its denominator below. Raises DataError, DiskError."""
    records = list(read(ledger_path))
    train = [record for record in records if isinstance(record, TrainRecord)]
    evaluations = [record for record in records if isinstance(record, EvalRecord)]

    figure = Figure(figsize=(9, 6), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    loss_axes, count_axes = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _draw_train(loss_axes, train)
    _draw_evaluations(loss_axes, evaluations)
    _draw_denominator(count_axes, train)
    _dress(loss_axes, count_axes, title)
    _draw_skipped(loss_axes, train)  # last: the height of a mark is not a loss
    loss_axes.legend(loc="upper right", edgecolor="none", framealpha=0.9)
    for label in filter(None, {comparison_label(record.denominator) for record in train}):
        figure.suptitle(label, color="white", weight="bold", fontsize=11, backgroundcolor=RED)
    FigureCanvasAgg(figure)  # whatever MPLBACKEND says
    with DiskError.naming(out):
        figure.savefig(out, format="png")


def rolling_ratio(sums: ArrayLike, counts: ArrayLike, width: int) -> Floats:
    """Loss per item over the `width` (odd) steps around each step: sum of sums / sum of counts.

    sums, counts: (steps,). A step whose sum is not finite, or that counts nothing, is left out of
    its neighbours' figures and is NaN itself, so that the gap stays visible.
    """
    sum_per_step = np.asarray(sums, dtype=np.float64)
    count_per_step = np.asarray(counts, dtype=np.float64)
    usable = np.isfinite(sum_per_step) & (count_per_step > 0)
    total = _rolling_sum(np.where(usable, sum_per_step, 0.0), width)
    items = _rolling_sum(np.where(usable, count_per_step, 0.0), width)
    return np.divide(total, items, out=np.full_like(total, np.nan), where=usable)


def _rolling_sum(values: Floats, width: int) -> Floats:
    running = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    first = np.maximum(index - width // 2, 0)
    return running[np.minimum(index + width // 2 + 1, len(values))] - running[first]


def _draw_train(axes: Any, train: Sequence[TrainRecord]) -> None:
    steps = [record.step for record in train]
    # A skipped step has a mark of its own; its loss, if it has one, moved no weight.
    losses = [math.nan if record.skipped else record.loss for record in train]
    gaps = sum(not record.skipped and not math.isfinite(record.loss) for record in train)
    few = len(train) <= 60  # more markers than that merge into a thick line
    axes.plot(
        steps,
        _drawable(losses),
        color=BLUE,
        alpha=0.45,
        linewidth=0.9,
        marker="o" if few else None,
        markersize=3.5,
        label="train, each step" + (f" ({gaps:,} not finite)" if gaps else ""),
    )
    width = len(train) // 20 | 1
    names = sorted({name for record in train for name in record.terms})
    for name, color in zip(names, cycle((BLUE, GREEN, PURPLE)), strict=False):
        terms = [NOTHING if r.skipped else r.terms.get(name, NOTHING) for r in train]
        ratio = rolling_ratio([term.sum for term in terms], [term.count for term in terms], width)
        label = f"train{f' {name}' if len(names) > 1 else ''}, sum / count over {width} steps"
        if width > 1 or len(names) > 1:
            axes.plot(steps, ratio, color=color, linewidth=2.2, label=_with_last(label, ratio))


def _draw_evaluations(axes: Any, evaluations: Sequence[EvalRecord]) -> None:
    if evaluations:
        losses = [record.loss for record in evaluations]
        axes.plot(
            [record.step for record in evaluations],
            _drawable(losses),
            color=RED,
            linewidth=1,
            linestyle=":",
            marker="D",
            markersize=6.5,
            markeredgecolor="white",
            zorder=4,
            label=_with_last("held out", losses),
        )


def _draw_skipped(axes: Any, train: Sequence[TrainRecord]) -> None:
    reasons = Counter(record.skipped for record in train if record.skipped)
    for (reason, times), marker in zip(sorted(reasons.items()), cycle("xv+"), strict=False):
        steps = [record.step for record in train if record.skipped == reason]
        axes.plot(
            steps,
            [0.03] * times,
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker=marker,
            markersize=7,
            color=INK,
            clip_on=False,
            label=f"skipped, {reason}: {times:,}",
        )


def _draw_denominator(axes: Any, train: Sequence[TrainRecord]) -> None:
    counts = [record.supervised_tokens for record in train]
    if train:
        edges = [record.step - 0.5 for record in train] + [train[-1].step + 0.5]
        axes.stairs(counts, edges, fill=True, color=ORANGE)
    axes.set_ylim(0, 1.05 * max(counts, default=0) or 1)


def _dress(loss_axes: Any, count_axes: Any, title: str) -> None:
    loss_axes.set_title(title, loc="left", weight="bold", fontsize=13, color=INK, pad=10)
    loss_axes.set_ylabel("nats per supervised token", color=INK)
    count_axes.set_title("supervised tokens per window", loc="left", fontsize=10, color=INK)
    count_axes.set_xlabel("step", color=INK)
    count_axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    count_axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True, min_n_ticks=1))
    for axis in (count_axes.xaxis, count_axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
    if not any(np.isfinite(line.get_ydata()).any() for line in loss_axes.lines):
        loss_axes.set_yticks([])
        loss_axes.text(0.5, 0.5, "no finite loss", transform=loss_axes.transAxes, ha="center")
    for axes in (loss_axes, count_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(color=FAINT, labelcolor=INK)
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)


def _drawable(losses: Sequence[float]) -> list[float]:
    """An infinite loss is a gap like a NaN: on an axis it would hide all others."""
    return [loss if math.isfinite(loss) else math.nan for loss in losses]


def _with_last(label: str, losses: Sequence[float] | Floats) -> str:
    return f"{label} (last {show_loss(losses[-1])})"
