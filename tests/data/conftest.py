"""What takes seconds to make, made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from gradacc_dist.data import corpus, tokenizer


@pytest.fixture(scope="session")
def embedded_corpus() -> corpus.Corpus:
    return corpus.build()


@pytest.fixture(scope="session")
def embedded_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds the embedded tokenizer once `embedded_tokenizer` is made."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def embedded_tokenizer(embedded_cache: Path) -> PreTrainedTokenizerFast:
    return tokenizer.load("embedded", embedded_cache)
