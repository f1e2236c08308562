from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray
from observe.records import eval_record, train_record, write_ledger

from gradacc_dist.errors import DiskError
from gradacc_dist.observe.figures import loss_figure, rolling_ratio
from gradacc_dist.observe.ledger import Record

SKIPPED = [train_record(step, math.nan, 0, skipped="zero_items") for step in range(1, 6)]
FALLING = [train_record(step, 3 + 6 / step, 100 + 7 * step % 40) for step in range(1, 101)]


def drawn(tmp_path: Path, *records: Record) -> NDArray[np.float64]:
    """Pixels (height, width, RGB in [0, 1]) of the figure of these records."""
    out = tmp_path / "loss.png"
    loss_figure(write_ledger(tmp_path / "ledger.jsonl", *records), out, "a title")
    pixels: NDArray[np.float64] = imread(out)[..., :3]
    (tmp_path / "ledger.jsonl").unlink()
    return pixels


def num_pixels(pixels: NDArray[np.float64], color: str) -> int:
    rgb = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return int((np.abs(pixels - rgb).max(axis=-1) < 0.02).sum())


def test_rolling_ratio_is_a_sum_over_a_sum() -> None:
    # Means of 1, 5 and 2 over 100, 1 and 9 items: a mean of means would give 8 / 3.
    ratio = rolling_ratio([100.0, 5.0, 18.0], [100.0, 1.0, 9.0], width=3)
    assert ratio.tolist() == [105 / 101, 123 / 110, 23 / 10]


def test_rolling_ratio_leaves_gaps_and_does_not_spread_them() -> None:
    ratio = rolling_ratio([4.0, math.nan, 6.0, 0.0, math.inf], [2.0, 1.0, 3.0, 0.0, 1.0], width=3)
    np.testing.assert_array_equal(ratio, [2.0, math.nan, 2.0, math.nan, math.nan])


@pytest.mark.parametrize(
    "records",
    [
        FALLING,
        [train_record(1)],
        SKIPPED,
        [eval_record(0)],
        [],
        [*SKIPPED, eval_record(5, math.nan)],
        [train_record(1, math.inf), train_record(2, math.nan)],
    ],
    ids=["100", "one", "skipped", "evaluation only", "empty", "nan evaluation", "inf"],
)
def test_the_figure_is_a_picture_of_the_promised_size(
    tmp_path: Path, records: list[Record]
) -> None:
    pixels = drawn(tmp_path, *records)
    assert pixels.shape == (600, 900, 3)
    assert 0.001 < (pixels.min(axis=-1) < 0.5).mean() < 0.3, "blank, or nothing but ink"


def test_each_thing_is_visible_only_when_there_is_one(tmp_path: Path) -> None:
    vermillion, ink, blue = "#D55E00", "#333333", "#0072B2"
    plain = drawn(tmp_path, *FALLING)
    assert num_pixels(plain, blue) > 500, "the smoothed loss"
    assert num_pixels(plain, "#E69F00") > 20_000, "the denominators"
    assert num_pixels(plain, vermillion) == 0
    assert num_pixels(drawn(tmp_path, *FALLING, eval_record(100)), vermillion) > 50
    skips = [train_record(s, math.nan, 0, skipped="zero_items") for s in range(101, 104)]
    assert num_pixels(drawn(tmp_path, *FALLING, *skips), ink) > num_pixels(plain, ink) + 30


def test_the_wrong_denominator_is_labelled(tmp_path: Path) -> None:
    wrong = [
        train_record(step, 3 + 6 / step, denominator="micro_batch_mean") for step in range(1, 101)
    ]
    banner = drawn(tmp_path, *wrong)[:60]
    assert num_pixels(banner, "#D55E00") > 3000


def test_a_nan_step_is_a_gap_in_both_lines(tmp_path: Path) -> None:
    gap = range(40, 61)
    records = [train_record(step, math.nan if step in gap else 3.0, 100) for step in range(1, 101)]
    pixels = drawn(tmp_path, *records)
    # The loss is flat at 3: one row of pixels of the upper panel holds the line, with a hole.
    is_blue = (pixels[..., 2] > pixels[..., 0] + 0.2)[150:420]
    line = is_blue[is_blue.sum(axis=1).argmax()]
    left, right = np.flatnonzero(line)[[0, -1]]
    hole = np.diff(np.flatnonzero(line)).max() / (right - left)
    # 99 intervals from the first step to the last, 22 of them without a line
    assert hole == pytest.approx(22 / 99, abs=0.01)


def test_an_unwritable_figure_is_a_disk_error(tmp_path: Path) -> None:
    ledger = write_ledger(tmp_path / "ledger.jsonl", train_record())
    with pytest.raises(DiskError, match=r"loss\.png: cannot be written: No such file"):
        loss_figure(ledger, tmp_path / "nowhere" / "loss.png", "a title")


def test_no_global_state_of_matplotlib(tmp_path: Path) -> None:
    drawn(tmp_path, *FALLING)
    assert "matplotlib.pyplot" not in sys.modules
