"""Tokenizers: one trained on the embedded corpus and kept on disk, or any that transformers loads.

`fingerprint` identifies a tokenizer by what it does, for cache keys and agreement between ranks.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import tokenizers
from filelock import FileLock
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gradacc_dist.data import corpus
from gradacc_dist.errors import DataError

EMBEDDED: Final = "embedded"
VOCABULARY_SIZE: Final = 4096
END_TOKEN: Final = "<|endoftext|>"
PAD_TOKEN: Final = "<|pad|>"

FORMAT_VERSION: Final = 1
"""Raise it with any change to how the embedded tokenizer is trained or saved."""

# Training takes seconds; a process that waits this long is waiting for one that hangs.
LOCK_TIMEOUT_SECONDS: Final = 600.0

# Where a tokenizer was loaded from and how, not what it does.
ORIGIN_SETTINGS: Final = frozenset(
    (
        "name_or_path",
        "is_local",
        "local_files_only",
        "tokenizer_file",
        "special_tokens_map_file",
        "backend",
        "model_max_length",
    )
)


def load(name_or_path: str, cache_dir: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer: `embedded`, a local folder, or a hub name.

    `embedded` is trained by the first process that needs it, under `cache_dir/tokenizers`; others
    on this machine wait for it. Not a collective. Runs no code from the hub. A tokenizer without a
    padding token is fine: padding is neither attended nor supervised, so any id serves. Raises
    DataError if there is no such tokenizer, or it lacks an end-of-text token or a vocabulary.
    """
    if name_or_path == EMBEDDED:
        return _load_embedded(cache_dir.expanduser())
    folder = Path(name_or_path).expanduser()
    is_folder = folder.is_dir()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder) if is_folder else name_or_path,
            trust_remote_code=False,  # unset, transformers asks at the terminal
        )
    except (OSError, ValueError, ImportError) as error:  # ImportError: sentencepiece and the like
        place = (
            "this folder holds no tokenizer that transformers can load"
            if is_folder
            else "no such folder here, and the Hugging Face hub delivers no tokenizer of this name"
        )
        raise DataError(
            f"tokenizer {name_or_path!r}: {place} ({_one_line(error)}); set "
            "model.tokenizer to a folder written by save_pretrained, a hub name that can be "
            f"reached, or `{EMBEDDED}`"
        ) from error
    _check_usable(tokenizer, name_or_path)
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of what decides the tokenizer's output: 64 hexadecimal digits.

    Equal for the same tokenizer loaded from different places, and before and after use. A tokenizer
    written in Python has no such single description: its class, vocabulary files and settings
    stand for it, so one of a newer transformers with the same files and other code goes unseen.
    """
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        # Left behind by the latest call, and set anew by the next.
        del description["truncation"], description["padding"]
    else:
        description = _describe_python_tokenizer(tokenizer)
    identity = {
        "description": description,
        "special_tokens": tokenizer.special_tokens_map,
        "chat_template": tokenizer.chat_template,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=repr).encode()).hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_usable(tokenizer: PreTrainedTokenizerBase, name_or_path: str) -> None:
    # transformers makes up an empty tokenizer for a folder that has a model's config.json only.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise DataError(
            f"tokenizer {name_or_path!r}: its vocabulary holds nothing but "
            f"{len(tokenizer)} special tokens; its vocabulary files are probably missing: copy "
            "tokenizer.json beside config.json, or set model.tokenizer to another"
        )
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"tokenizer {name_or_path!r}: it has no end-of-text token (eos_token), so "
            "examples could not be ended; set eos_token in its tokenizer_config.json, or set "
            "model.tokenizer to another"
        )


def _load_embedded(cache_dir: Path) -> PreTrainedTokenizerBase:
    key = {
        "corpus": corpus.fingerprint(),
        "vocabulary_size": VOCABULARY_SIZE,
        "tokenizers": tokenizers.__version__,
        "format": FORMAT_VERSION,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir / "tokenizers" / digest
    try:
        if not folder.is_dir():
            _train_once(folder)
    except OSError as error:  # filelock.Timeout is one
        raise DataError(
            f"cannot keep the embedded tokenizer in {folder}: {_one_line(error)}; set "
            "data.cache_dir to a folder that this user can write to"
        ) from error
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the embedded tokenizer kept in {folder} cannot be read ({_one_line(error)}); "
            "delete that folder and it is made again"
        ) from error


def _train_once(folder: Path) -> None:
    """Make `folder`, whole or not at all, unless another process makes it first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=LOCK_TIMEOUT_SECONDS):
        if folder.is_dir():
            return
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
            # One level down: a temporary folder is closed to other users, the cache is not.
            made = Path(scratch) / folder.name
            _train().save_pretrained(made)
            try:
                made.rename(folder)
            except OSError:
                # A lock on a network filesystem may hold on one machine only. Training gives the
                # same tokenizer everywhere, so another machine's is as good.
                if not folder.is_dir():
                    raise


def _train() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the training split: same corpus, same bytes on disk."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_TOKEN, PAD_TOKEN],
        # All 256 bytes, so that any text can be written.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def _texts() -> Iterator[str]:
    for row in corpus.rows("train"):
        yield row["text"] if "text" in row else row["prompt"] + row["completion"]


def _describe_python_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        files = tokenizer.save_vocabulary(scratch)
        contents = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    ignored = ORIGIN_SETTINGS | set(tokenizer.vocab_files_names)
    return {
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "vocabulary_files": contents,
        "added_tokens": tokenizer.get_added_vocab(),
        "settings": {
            name: value
            for name, value in tokenizer.init_kwargs.items()
            if value is not None and name not in ignored
        },
    }
