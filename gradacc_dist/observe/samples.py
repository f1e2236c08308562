"""Examples as a person reads them: the supervised tokens stand out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from gradacc_dist.data.tokens import Example
from gradacc_dist.items import IGNORED_LABEL

SUPERVISED_STYLE, OTHER_STYLE = "bold green", "dim"
TOKENS_SHOWN, SEGMENTS_SHOWN = 200, 12
T = TypeVar("T")


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens that are all supervised, or none of them."""

    token_ids: list[int]
    is_supervised: bool


def stretches(example: Example) -> list[Stretch]:
    """The example cut where supervision changes. The first token, which nothing predicts, is not
    supervised whatever its label.
    """
    flags = [index > 0 and label != IGNORED_LABEL for index, label in enumerate(example.labels)]
    pairs = zip(flags, example.input_ids.tolist(), strict=True)
    return [
        Stretch([token for _, token in group], flag)
        for flag, group in groupby(pairs, key=lambda pair: pair[0])
    ]


def sample_text(example: Example, tokenizer: PreTrainedTokenizerBase, console: Console) -> Text:
    """The example for this console: coloured, or ⟦bracketed⟧ where there is no colour.

    Long stretches, and long rows of stretches, are cut in their middle.
    """
    has_color = console.color_system is not None and not console.no_color
    brackets = ("[[", "]]") if console.options.ascii_only else ("⟦", "⟧")
    text = Text()

    def add(stretch: Stretch) -> None:
        shown = _decoded(stretch.token_ids, tokenizer)
        if console.options.ascii_only:
            shown = shown.encode("ascii", "backslashreplace").decode()
        if stretch.is_supervised and not has_color:
            shown = shown.join(brackets)
        text.append(shown, SUPERVISED_STYLE if stretch.is_supervised else OTHER_STYLE)

    head, num_left_out, tail = _ends(stretches(example), SEGMENTS_SHOWN)
    for stretch in head:
        add(stretch)
    if num_left_out:
        text.append(f" ... {num_left_out:,} stretches left out ... ", "italic")
    for stretch in tail:
        add(stretch)
    return text


def _decoded(token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    head, num_left_out, tail = _ends(token_ids, TOKENS_SHOWN)
    text = str(tokenizer.decode(head))
    if num_left_out:
        text += f" ... {num_left_out:,} tokens left out ... {tokenizer.decode(tail)}"
    # What the data holds must not steer the terminal.
    return "".join(c if c.isprintable() or c in "\n\t " else repr(c)[1:-1] for c in text)


def _ends(values: Sequence[T], num: int) -> tuple[Sequence[T], int, Sequence[T]]:
    """The first and the last of `values`, `num` in all, and how many are between them."""
    if len(values) <= num:
        return values, 0, ()
    half = num // 2
    return values[:half], len(values) - 2 * half, values[-half:]
