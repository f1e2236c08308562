"""The data of a run, as its configuration says: tokenizer, training examples, held-out examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from transformers import PreTrainedTokenizerBase

from gradacc_dist.config.schema import Config, Share, Sources
from gradacc_dist.data import tokenizer as tokenizers
from gradacc_dist.data.chat import use_template
from gradacc_dist.data.mixture import Mixture, Part
from gradacc_dist.data.sources import Role, Source
from gradacc_dist.data.stream import Stream, Tokenising
from gradacc_dist.data.tokens import ROWS_NAMED, Report, prepare
from gradacc_dist.errors import DataError

# Told a source and how many of its rows are tokenised.
OnRows: TypeAlias = Callable[[str, int], None]


@dataclass(frozen=True)
class Data:
    """What every rank reads."""

    tokenizer: PreTrainedTokenizerBase
    train: Mixture | Stream
    evaluate: Mixture | None

    @property
    def hashes(self) -> tuple[str, str | None]:
        """SHA-256 of the training examples, and of the held-out ones if there are any."""
        return self.train.sha256, self.evaluate.sha256 if self.evaluate else None


def load_data(config: Config, on_rows: OnRows | None = None) -> Data:
    """Tokenizer and tokens, from the cache where it has them. Not collective.

    `on_rows` is told a source and how many of its rows are tokenised, by the one process that
    does it. Raises DataError for what cannot be used.
    """
    tokenizer = load_tokenizer(config)

    def mixture(sources: Sources, role: Role) -> Mixture:
        parts = []
        for source, weight in sources_of(sources, role):
            part = load_part(source, weight, tokenizer, config, on_rows)
            if refusal := refused(source, part.tokens.report, config):
                raise DataError(refusal)
            parts.append(part)
        return Mixture(parts)

    train, evaluate = config.data.train, config.data.evaluate
    return Data(
        tokenizer,
        _stream(config, tokenizer) if config.data.streaming else mixture(train, "train"),
        None if evaluate is None else mixture(evaluate, "evaluate"),
    )


def load_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer, with the chat template asked for. Raises DataError."""
    tokenizer = tokenizers.load(
        config.model.tokenizer or str(config.model.path), config.data.cache_dir.expanduser()
    )
    if config.data.chat_template is not None:
        use_template(tokenizer, config.data.chat_template)
    return tokenizer


def sources_of(sources: Sources, role: Role) -> list[tuple[Source, float]]:
    """Each source of data.train or data.evaluate, with its weight."""
    return [(Source(share.path, role), share.weight) for share in _shares(sources)]


def _stream(config: Config, tokenizer: PreTrainedTokenizerBase) -> Stream:
    data = config.data
    sources = [Source(share.path, "train", streaming=True) for share in _shares(data.train)]
    tokenising = Tokenising(tokenizer, data.supervise, data.max_length, data.on_zero_items)
    stream = Stream(sources, tokenising)
    stream.check_beginnings()
    return stream


def _shares(sources: Sources) -> tuple[Share, ...]:
    return (Share(path=sources),) if isinstance(sources, str) else sources


def load_part(
    source: Source,
    weight: float,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    on_rows: OnRows | None,
) -> Part:
    """The tokens of one source, whatever `refused` says of them. Raises DataError."""
    data = config.data
    tokens = prepare(
        source,
        tokenizer,
        data.max_length,
        data.cache_dir.expanduser(),
        data.supervise,
        partial(on_rows, source.name) if on_rows is not None else None,
    )
    return Part(source.name, tokens, weight, source.left_out())


def refused(source: Source, report: Report, config: Config) -> str | None:
    """Why the run may not train on these rows, with the remedy; None when it may."""
    if config.data.on_zero_items == "keep" or not report.num_without_items:
        return None
    max_length = config.data.max_length
    places = ", ".join(map(str, source.places(report.rows_without_items)))
    others = report.num_without_items - ROWS_NAMED
    more = f" and {others:,} more" if others > 0 else ""
    cut = report.num_cut_to_no_items
    why = f"; {cut:,} of them had some before data.max_length {max_length} cut them" if cut else ""
    raise_it = "raise data.max_length, " if cut else ""
    return (
        f"{source.name}: {report.num_without_items:,} of {report.num_rows:,} rows hold no "
        f"supervised token ({places}{more}){why}; {raise_it}change or remove these rows, or set "
        "data.on_zero_items: keep, if they may add nothing to the loss"
    )
