"""Progress of tokenising: nothing at first, then a line now and then, or one that lives."""

import io

from rich.console import Console

from gradacc_dist.observe.tokenising import TokenisingProgress


def shown(reports, *, terminal=False):
    """What appears for `(second, source, rows)` reports."""
    file = io.StringIO()
    clock = iter([0.0, *(second for second, _, _ in reports)])
    console = Console(file=file, force_terminal=terminal, width=80)
    with TokenisingProgress(console, lambda: next(clock)) as progress:
        for _, name, rows in reports:
            progress(name, rows)
    return file.getvalue()


def test_a_short_one_is_silent():
    assert shown([(9, "a", 0), (11.9, "a", 9000)]) == ""


def test_a_long_one_says_how_far_it_is():
    reports = [(0, "a", 0), (2, "a", 2000), (4, "a", 12_000), (6, "a", 14_000), (15, "a", 30_000)]
    assert shown(reports).splitlines() == [
        "a: tokenised 12,000 rows · 3,000 rows/s",
        "a: tokenised 30,000 rows · 2,000 rows/s",
    ]


def test_each_source_is_timed_by_itself():
    reports = [(5, "a", 0), (15, "a", 1000), (15, "b", 0), (17, "b", 2000), (25, "b", 5000)]
    assert shown(reports).splitlines() == [
        "a: tokenised 1,000 rows · 100 rows/s",
        "b: tokenised 5,000 rows · 500 rows/s",
    ]


def test_a_terminal_shows_one_line_that_lives():
    text = shown([(0, "a", 0), (4, "a", 1000), (5, "a", 2000)], terminal=True)
    assert "a: tokenised 2,000 rows · 400 rows/s" in text
    assert text.count("\n") <= 2
