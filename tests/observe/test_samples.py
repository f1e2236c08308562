"""Examples as a person reads them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from gradacc_dist.data.tokens import Example
from gradacc_dist.observe.samples import Stretch, sample_text, stretches


class Words:
    """Decodes token 7 to `7 `; of 27, to what would clear a terminal."""

    def decode(self, ids: list[int]) -> str:
        return "".join("\x1b[2J" if token == 27 else f"{token} " for token in ids)


def example(ids: list[int], labels: list[int]) -> Example:
    return Example(np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32))


def console(**settings: object) -> Console:
    settings = {"file": io.StringIO(), "width": 400, "color_system": None, **settings}
    return Console(**settings)


def test_stretches_are_what_the_loss_counts() -> None:
    assert stretches(example([1, 2, 3, 4], [1, 2, -100, 4])) == [
        Stretch([1], False),  # a label, but nothing predicts it
        Stretch([2], True),
        Stretch([3], False),
        Stretch([4], True),
    ]


def test_without_colour_supervised_tokens_are_in_brackets() -> None:
    shown = sample_text(example([1, 2, 3, 4], [-100, -100, 3, 4]), Words(), console())
    assert shown.plain == "1 2 ⟦3 4 ⟧"


def test_an_ascii_terminal_gets_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    shown = sample_text(example([1, 2], [-100, 2]), Words(), console(file=file))
    assert shown.plain == "1 [[2 ]]"


def test_with_colour_only_supervised_tokens_are_green() -> None:
    terminal = console(force_terminal=True, color_system="standard", no_color=False)
    with terminal.capture() as captured:
        terminal.print(sample_text(example([1, 2, 3], [-100, 2, -100]), Words(), terminal))
    assert captured.get() == "\x1b[2m1 \x1b[0m\x1b[1;32m2 \x1b[0m\x1b[2m3 \x1b[0m\n"


@pytest.mark.parametrize("num", [200, 201, 5000])
def test_long_stretches_are_cut_in_the_middle(num: int) -> None:
    ids = list(range(1000, 1000 + num))
    shown = sample_text(example([0, *ids], [-100, *ids]), Words(), console()).plain
    assert shown.startswith("0 ⟦1000 1001 ")
    assert shown.endswith(f"{ids[-1]} ⟧")
    assert shown.count(" ") < 220
    assert ("tokens left out" in shown) == (num > 200)
    assert num == 200 or f"{num - 200:,} tokens left out" in shown


def test_many_stretches_are_cut_in_the_middle() -> None:
    ids = np.arange(100, 200)
    labels = np.where(ids % 2, ids, -100)
    shown = sample_text(example(ids.tolist(), labels.tolist()), Words(), console()).plain
    assert "88 stretches left out" in shown
    assert shown.count("⟦") == 6


def test_data_does_not_steer_the_terminal() -> None:
    shown = sample_text(example([1, 27], [1, -100]), Words(), console()).plain
    assert shown == "1 \\x1b[2J"
