"""The same content gives the same tokens, whatever it is written in."""

import copy
import shutil

import numpy as np
import pytest
from chat_templates import LLAMA3, PLAIN, SPECIAL, marked
from writing import WRITERS

from gradacc_dist.data.sources import Source
from gradacc_dist.data.tokens import prepare

PAIRS = [("What is 2 + 2?\n", "Four."), ("¿Qué?\n", "Nothing 🙂"), ("Why?\n", "So.\n\nTherefore.")]
PLAIN_ROWS = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS]
MESSAGE_ROWS = [
    {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": c}]}
    for p, c in PAIRS
]
TURN_ROWS = [
    {"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in MESSAGE_ROWS
]


@pytest.fixture(scope="module")
def tokenizer(embedded_tokenizer):
    chat = copy.deepcopy(embedded_tokenizer)
    chat.add_special_tokens({"additional_special_tokens": SPECIAL})
    return chat


def examples(path, tokenizer, template, cache):
    tokenizer.chat_template = template
    tokens = prepare(Source(str(path), "train"), tokenizer, 64, cache)
    found = tokens.examples(np.arange(len(tokens)))
    return [(e.input_ids.tolist(), e.labels.tolist()) for e in found], tokens.items.tolist()


@pytest.mark.parametrize(
    "rows", [PLAIN_ROWS, MESSAGE_ROWS, TURN_ROWS], ids=["plain", "chat", "turns"]
)
def test_every_kind_of_file_gives_the_same_tokens(rows, tokenizer, tmp_path):
    found = [
        examples(write(tmp_path / name, rows), tokenizer, marked(LLAMA3), tmp_path / f"for {name}")
        for name, write in WRITERS.items()
    ]
    assert all(other == found[0] for other in found)
    assert len(found[0][0]) == len(PAIRS)
    assert min(found[0][1]) > 0


def test_plain_columns_messages_and_token_ids_give_the_same_tokens(tokenizer, tmp_path):
    """Where the template renders no more than the plain columns hold."""
    write = WRITERS["rows.jsonl"]
    plain, items = examples(write(tmp_path / "p.jsonl", PLAIN_ROWS), tokenizer, PLAIN, tmp_path)
    for rows in [MESSAGE_ROWS, TURN_ROWS]:
        path = write(tmp_path / "other.jsonl", rows)
        assert examples(path, tokenizer, PLAIN, tmp_path) == (plain, items)
    ids = [{"input_ids": input_ids, "labels": labels} for input_ids, labels in plain]
    for name in ["ids.jsonl", "ids.parquet"]:
        path = WRITERS[f"rows.{name[4:]}"](tmp_path / name, ids)
        assert examples(path, tokenizer, PLAIN, tmp_path) == (plain, items)


def test_the_cache_is_not_shared_by_templates(tokenizer, tmp_path):
    path = WRITERS["rows.jsonl"](tmp_path / "m.jsonl", MESSAGE_ROWS)
    one = examples(path, tokenizer, PLAIN, tmp_path)
    assert examples(path, tokenizer, marked(LLAMA3), tmp_path) != one
    shutil.rmtree(tmp_path / "tokens")
    assert examples(path, tokenizer, PLAIN, tmp_path) == one
