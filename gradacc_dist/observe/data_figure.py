"""A picture of the data: how long examples are, and how much of them is supervised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from gradacc_dist.errors import DiskError
from gradacc_dist.observe.figures import BLUE, FAINT, INK, ORANGE, RED

Counts = NDArray[np.int64]
NUM_BINS = 40
# Where the largest value is this many times the median, a linear axis shows one bar.
LONG_TAIL = 8


def data_figure(
    lengths: Mapping[str, Counts], items: Mapping[str, Counts], max_length: int, out: Path
) -> None:
    """Write a 900 x 600 PNG: histograms of tokens and of supervised tokens per example.

    lengths, items: per name, (examples,), not empty. Raises DiskError.
    """
    figure = Figure(figsize=(9, 6), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    above, below = figure.subplots(2, 1)
    _draw(above, lengths, "Tokens per example")
    _draw(below, items, "Supervised tokens per example")
    if max(int(values.max()) for values in lengths.values()) >= max_length:
        above.axvline(max_length, color=RED, linewidth=1.2, linestyle="--")
        above.annotate(
            f"data.max_length {max_length:,} ",
            (max_length, 0.97),
            xycoords=above.get_xaxis_transform(),
            color=RED,
            fontsize=9,
            ha="right",
            va="top",
        )
    below.set_xlabel("tokens", color=INK)
    FigureCanvasAgg(figure)  # whatever MPLBACKEND says
    with DiskError.naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png")


def bin_edges(values: Counts) -> tuple[NDArray[np.float64], bool]:
    """Edges of bins that hold all of `values`, and whether their widths grow by a factor.

    Growing bins begin at 1: zeros are in none. Edges lie halfway between whole numbers and no bin
    is narrower than the one before, so that none holds fewer whole numbers by chance.
    """
    low, high = int(values.min()), int(values.max())
    is_long = high > LONG_TAIL * max(1, int(np.median(values)))
    if is_long:
        low = max(low, 1)
        spaced = np.unique(np.rint(np.geomspace(low, high + 1, NUM_BINS + 1)))
        widths = np.maximum.accumulate(np.diff(spaced))
    else:
        num = high + 1 - low
        widths = np.full(NUM_BINS, -(-num // NUM_BINS))
    edges = low + np.concatenate([[0], np.cumsum(widths)])
    return edges[: np.searchsorted(edges, high + 1) + 1] - 0.5, is_long


def _draw(axes: Any, values: Mapping[str, Counts], title: str) -> None:
    edges, is_long = bin_edges(np.concatenate(list(values.values())))
    styles = zip(values.items(), ((BLUE, True), (ORANGE, False)), strict=False)
    for (name, counts), (color, fill) in styles:
        # Shares, so that a small split is seen beside a large one.
        shares = np.histogram(counts, edges)[0] / len(counts)
        num_empty = int((counts == 0).sum())
        label = f"{name} ({len(counts):,})"
        if num_empty:
            label += f", {num_empty:,} of 0" + (" not drawn" if is_long else "")
        axes.stairs(
            shares,
            edges,
            fill=fill,
            color=color,
            alpha=0.55 if fill else 1,
            linewidth=1.8,
            label=label,
        )
    axes.set_title(title, loc="left", weight="bold", fontsize=12, color=INK, pad=24)
    if is_long:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda number, _: f"{number:,.0f}" if number == round(number) else "")
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.set_ylabel("share of rows", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    # Between title and axes, where it covers no bar.
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.97),
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
