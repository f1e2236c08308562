"""A look at a run's data: what it holds, what is odd about it, and what training would refuse."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import transformers
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from gradacc_dist.config.schema import Config
from gradacc_dist.data.examine import (
    Keys,
    Repeats,
    duplicates,
    keys_of,
    places_of,
    shared,
    spread_by_length,
)
from gradacc_dist.data.load import OnRows, load_part, load_tokenizer, refused, sources_of
from gradacc_dist.data.mixture import Mixture, Part
from gradacc_dist.data.rows import Place
from gradacc_dist.data.sources import Role, Source
from gradacc_dist.errors import DataError
from gradacc_dist.observe.data_figure import data_figure
from gradacc_dist.observe.data_tables import part_rows, repeats_row
from gradacc_dist.observe.samples import sample_text
from gradacc_dist.observe.tables import titled_table
from gradacc_dist.observe.tokenising import TokenisingProgress

NUM_SAMPLES = 3
FIGURE = "validate.png"


@dataclass(frozen=True)
class Split:
    """The sources of one role that can be read, as one sequence of rows. `keys`: (rows,)."""

    role: Role
    sources: tuple[tuple[Source, Part], ...]
    keys: Keys

    @property
    def begins(self) -> list[int]:
        """The index of each source's first row, and the number of rows."""
        sizes = [len(part.tokens) for _, part in self.sources]
        return [0, *np.cumsum(sizes, dtype=int).tolist()]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(rows,): input tokens."""
        return np.concatenate([part.tokens.lengths for _, part in self.sources])

    @property
    def items(self) -> NDArray[np.int64]:
        """(rows,): supervised tokens."""
        return np.concatenate([part.tokens.items for _, part in self.sources])

    def places(self, indexes: set[int]) -> dict[int, Place]:
        """Where these rows stand, and all that the sources' reports name."""
        named = set(indexes)
        for begin, (_, part) in zip(self.begins, self.sources, strict=False):
            report = part.tokens.report
            for rows in (report.truncated_rows, report.rows_without_items, report.rows_without_end):
                named |= {begin + row for row in rows}
        return places_of([(source, len(part.tokens)) for source, part in self.sources], named)


def validate(config: Config) -> None:
    """Show everything, then raise a DataError for all that training would refuse."""
    started = time.perf_counter()
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    problems: list[str] = []
    tokenizer = load_tokenizer(config)
    with TokenisingProgress(console) as progress:
        train = read_split(config, "train", tokenizer, progress, problems)
        held_out = read_split(config, "evaluate", tokenizer, progress, problems)
    show_tables(console, config, train, held_out, str(tokenizer.eos_token))
    if train.sources:
        show_samples(console, train, tokenizer)
    show_figure(console, config, [split for split in (train, held_out) if split.sources])
    num_rows, seconds = len(train.keys) + len(held_out.keys), time.perf_counter() - started
    console.print(f"{num_rows:,} rows in {seconds:.1f} s", highlight=False)
    if problems:
        raise DataError(_all_of(problems))
    console.print("Training would accept this data.")


def read_split(
    config: Config,
    role: Role,
    tokenizer: PreTrainedTokenizerBase,
    on_rows: OnRows,
    problems: list[str],
) -> Split:
    """The sources of data.train or data.evaluate. Adds what training would refuse to `problems`."""
    given = config.data.train if role == "train" else config.data.evaluate
    read = []
    for source, weight in sources_of(given, role) if given is not None else ():
        try:
            part = load_part(source, weight, tokenizer, config, on_rows)
            if refusal := refused(source, part.tokens.report, config):
                problems.append(refusal)
            read.append((source, part))
            Mixture([part])  # may refuse the weight
        except DataError as error:
            problems.append(str(error))
    keys = [keys_of(part.tokens) for _, part in read]
    return Split(role, tuple(read), np.concatenate([np.empty(0, np.uint64), *keys]))


def show_tables(console: Console, config: Config, train: Split, held_out: Split, end: str) -> None:
    """A table for each source, and one for what repeats."""
    repeats = {split.role: duplicates(split.keys) for split in (train, held_out)}
    leaks = shared(held_out.keys, train.keys)
    leaked_from = {other for _, other in leaks.first}
    places = {
        "train": train.places(_named(repeats["train"]) | leaked_from),
        "evaluate": held_out.places(
            _named(repeats["evaluate"]) | {index for index, _ in leaks.first}
        ),
    }
    for split in (train, held_out):
        for begin, (source, part) in zip(split.begins, split.sources, strict=False):
            rows = part_rows(part, begin, places[split.role], config.data.max_length, end)
            console.print(titled_table(f"data.{split.role}: {source.name}", rows))
            console.print()
    rows = {}
    for split in (train, held_out):
        if split.sources:
            at = places[split.role]
            text = repeats_row(repeats[split.role], len(split.keys), at, at, "repeats")
            rows[f"in data.{split.role}"] = text
    if train.sources and held_out.sources:
        at, others = places["evaluate"], places["train"]
        rows["in both"] = repeats_row(leaks, len(held_out.keys), at, others, "is also")
    if rows:
        console.print(titled_table("Equal examples", rows))
        console.print()


def show_samples(console: Console, train: Split, tokenizer: PreTrainedTokenizerBase) -> None:
    """The shortest training example, the median and the longest, as the model is taught them."""
    chosen = spread_by_length(train.lengths, NUM_SAMPLES)
    places = train.places(set(chosen))
    for index in chosen:
        number = int(np.searchsorted(train.begins, index, side="right")) - 1
        tokens = train.sources[number][1].tokens
        row = index - train.begins[number]
        (example,) = tokens.examples(np.array([row]))
        sizes = f"{tokens.lengths[row]:,} tokens, {tokens.items[row]:,} of them supervised"
        console.print(Text(f"Sample, {places[index]}: {sizes}", style="bold"))
        console.print(sample_text(example, tokenizer, console))
        console.print()


def show_figure(console: Console, config: Config, splits: list[Split]) -> None:
    """Draw validate.png, which is all that this leaves in the run's folder."""
    if splits:
        out = config.run.folder / FIGURE
        lengths = {f"data.{split.role}": split.lengths for split in splits}
        items = {f"data.{split.role}": split.items for split in splits}
        data_figure(lengths, items, config.data.max_length, out)
        console.print(Text(f"Figure: {out}"), soft_wrap=True)


def _named(repeats: Repeats) -> set[int]:
    return {index for pair in repeats.first for index in pair}


def _all_of(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} problems", *(f"- {problem}" for problem in problems)])
