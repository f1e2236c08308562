"""The picture of the data."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from gradacc_dist.errors import DiskError
from gradacc_dist.observe.data_figure import bin_edges, data_figure

SHORT = np.arange(100, 400)
LONG = np.concatenate([np.arange(1, 50), [20_000]])
SAME = np.array([7, 7])


@pytest.mark.parametrize("values", [SHORT, LONG, SAME, np.array([0, 1]), np.arange(11, 90)])
def test_every_value_is_in_a_bin_and_no_bin_is_narrower_than_the_last(values):
    edges, is_long = bin_edges(values)
    assert is_long == (values is LONG)
    assert np.histogram(values, edges)[0].sum() == len(values)
    assert (np.diff(np.diff(edges)) >= 0).all()
    assert len(edges) <= 42
    assert edges[0] < values.min() < edges[1]
    assert edges[-2] <= values.max() < edges[-1]


def test_zeros_are_in_no_growing_bin():
    edges, is_long = bin_edges(np.concatenate([[0, 0], LONG]))
    assert is_long
    assert edges[0] == 0.5


@pytest.mark.parametrize("values", [SHORT, LONG, SAME, SAME * 0])
def test_the_figure_is_not_blank(tmp_path, values):
    out = tmp_path / "new" / "validate.png"
    data_figure({"data.train": values}, {"data.train": values}, 10**6, out)
    alone = imread(out)[..., :3]
    assert alone.shape == (600, 900, 3)
    for half in (alone[:300], alone[300:]):
        is_blue = (half[..., 2] > half[..., 0] + 0.2).mean()
        assert is_blue > 0.01
    data_figure({"a": values, "b": values}, {"a": values, "b": values}, int(values.max()), out)
    both = imread(out)[..., :3]
    is_warm = both[..., 0] > both[..., 2] + 0.4
    assert is_warm.sum() > 500, "held out in orange, the limit in red"
    assert ((alone[..., 0] > alone[..., 2] + 0.4).sum()) == 0


def test_an_unwritable_figure_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"x\.png: cannot be written"):
        data_figure({"a": SHORT}, {"a": SHORT}, 10, tmp_path / "file" / "x.png")
