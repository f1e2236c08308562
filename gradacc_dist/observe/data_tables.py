"""What a look at the data found, as the rows of tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gradacc_dist.data.examine import Repeats, quantiles
from gradacc_dist.data.mixture import Part, weighted_rows
from gradacc_dist.data.rows import Place

FILES_NAMED = 5
NONE = "none"
Places = Mapping[int, Place]


def part_rows(part: Part, begin: int, places: Places, max_length: int, end: str) -> dict[str, str]:
    """One source: its sizes, and what is odd about its rows.

    `places`: of the rows that its report names, which counts them from 0; the first has `begin`
    in `places`. `end`: the end-of-text token.
    """
    tokens, report = part.tokens, part.tokens.report
    num_tokens, num_items = int(tokens.lengths.sum()), int(tokens.items.sum())

    def named(num: int, rows: Iterable[int], what: str) -> str:
        found = [places[begin + row] for row in rows]
        return f"{_rows(num)} {what}: {_shown(found, num)}" if num else NONE

    cut = f"lost {report.num_truncated_tokens:,} tokens to data.max_length {max_length}"
    mute = "without a supervised token"
    if report.num_cut_to_no_items:
        mute += f", {report.num_cut_to_no_items:,} of them because they were truncated"
    endless = f"whose supervised part does not end with {end}, truncated ones aside"
    return {
        "rows": _rows_and_examples(part),
        "input tokens": f"{num_tokens:,}",
        "supervised": f"{num_items:,} tokens, {num_items / max(1, num_tokens):.1%}",
        "length": _quantiles(tokens.lengths),
        "supervised each": _quantiles(tokens.items),
        "truncated": named(report.num_truncated, report.truncated_rows, cut),
        "no supervision": named(report.num_without_items, report.rows_without_items, mute),
        "missing EOS": named(report.num_without_end, report.rows_without_end, endless),
        "not read": _left_out(part.left_out),
    }


def repeats_row(repeats: Repeats, num_rows: int, places: Places, others: Places, how: str) -> str:
    """Examples that occur more than once, with the first of them and what they repeat."""
    if not repeats.num:
        return NONE
    pairs = [f"{places[index]} {how} {others[other]}" for index, other in repeats.first]
    more = _more(repeats.num - len(pairs))
    return "\n".join([f"{repeats.num:,} of {_rows(num_rows)}", *pairs]) + more


def _rows_and_examples(part: Part) -> str:
    report = part.tokens.report
    shapes = "; ".join(f"{num:,} of {shape}" for shape, num in report.shapes.items())
    text = f"{report.num_rows:,} ({shapes})"
    if part.weight != 1:
        num_examples = len(weighted_rows(report.num_rows, part.weight))
        text += f" x {part.weight:g} = {num_examples:,} examples an epoch"
    return text


def _quantiles(values: NDArray[np.int64]) -> str:
    half, most, nearly_all, longest = quantiles(values)
    return f"median {half:,}, 90% {most:,}, 99% {nearly_all:,}, longest {longest:,}"


def _left_out(names: tuple[str, ...]) -> str:
    if not names:
        return NONE
    text = f"{len(names):,} file(s) of other kinds: {'; '.join(names[:FILES_NAMED])}"
    return text + _more(len(names) - FILES_NAMED)


def _shown(places: Iterable[Place], num: int) -> str:
    """`a.jsonl: rows 3, 7`; file by file."""
    files = []
    num_shown = 0
    for file, within in groupby(places, key=lambda place: place.file):
        rows = [str(place.row) for place in within]
        num_shown += len(rows)
        files.append(f"{file}: row{'s' if len(rows) > 1 else ''} {', '.join(rows)}")
    return "; ".join(files) + _more(num - num_shown)


def _more(num: int) -> str:
    return f" and {num:,} more" if num > 0 else ""


def _rows(num: int) -> str:
    return f"{num:,} row" if num == 1 else f"{num:,} rows"
