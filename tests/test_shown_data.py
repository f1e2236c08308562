"""What a run says of its data: the sources in its start table, the prompt of its sample."""

from dataclasses import dataclass

import numpy as np
import pytest

from gradacc_dist.data.mixture import Mixture, Part
from gradacc_dist.data.tokens import Example, Report
from gradacc_dist.records import odd_rows, source_rows
from gradacc_dist.training import prompt_of


@dataclass
class Counted:
    """Tokens of which only the numbers are asked for."""

    report: Report
    sha256: str = ""

    def __post_init__(self):
        self.lengths = self.items = np.ones(self.report.num_rows, dtype=np.int64)

    def __len__(self):
        return self.report.num_rows


def test_each_source_is_shown_with_rows_shapes_and_weight():
    chat = Part("chat", Counted(Report(num_rows=4000, shapes={"messages": 4000})), 0.5)
    files = Counted(Report(num_rows=3, shapes={"text": 2, "prompt, completion": 1}))
    folder = Part("folder", files, 1.0, ("folder/a.md",))
    assert source_rows(Mixture([chat, folder])) == {
        "source 1": "chat: 4,000 rows (4,000 of messages) x 0.5 = 2,000 examples",
        "source 2": "folder: 3 rows (2 of text; 1 of prompt, completion); 1 files of other kinds "
        "are not read",
    }
    assert list(source_rows(Mixture([folder]))) == ["source"]


def test_what_is_odd_about_the_sources_is_summed():
    cut = Report(num_rows=3, num_truncated=2, num_truncated_tokens=50, num_without_end=1)
    mute = Report(num_rows=4, num_truncated=1, num_truncated_tokens=5, num_without_items=3)
    parts = [Part(name, Counted(report)) for name, report in (("a", cut), ("b", mute))]
    assert odd_rows(Mixture(parts), 64) == {
        "truncated": "3 rows lost 55 tokens to data.max_length 64",
        "no supervision": "3 rows hold no supervised token",
        "missing EOS": "1 rows do not end with the end-of-text token; gradacc_dist.validate "
        "names them",
    }
    assert odd_rows(Mixture([Part("c", Counted(Report(num_rows=2)))]), 64) == {}


@pytest.mark.parametrize(
    ("labels", "prompt"),
    [
        ([-100, -100, 7, 8, -100, 9], [5, 6]),
        ([5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9]),
        ([-100, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9]),
        ([-100] * 6, [5, 6, 7, 8, 9]),
    ],
)
def test_the_sample_continues_what_is_not_supervised(labels, prompt):
    assert prompt_of(Example(np.arange(5, 11), np.array(labels))) == prompt
