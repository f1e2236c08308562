"""Tokens: made once, found by content, read back as they were written."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from gradacc_dist.data import tokenizer as tokenizers
from gradacc_dist.data import tokens as tokens_module
from gradacc_dist.data.sources import Source
from gradacc_dist.data.tokens import prepare
from gradacc_dist.errors import DataError

ROWS = [{"prompt": "a b c " * n, "completion": " d e" * n} for n in range(1, 8)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizers.load("embedded", tmp_path_factory.mktemp("cache"))


def write(path: Path, rows: list) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path), "train")


def test_reads_back_what_was_written(tmp_path, tokenizer):
    tokens = prepare(write(tmp_path / "a.jsonl", ROWS), tokenizer, 512, tmp_path)
    assert len(tokens) == len(ROWS)
    examples = tokens.examples(np.array([6, 0]))
    for example, row in zip(examples, [ROWS[6], ROWS[0]], strict=True):
        assert tokenizer.decode(example.input_ids[:-1]) == row["prompt"] + row["completion"]
        supervised = example.labels[example.labels != -100]
        assert tokenizer.decode(supervised[:-1]) == row["completion"]
        assert supervised[-1] == tokenizer.eos_token_id
    assert tokens.lengths.tolist() == [len(e.input_ids) for e in tokens.examples(np.arange(7))]
    counts = [int((e.labels[1:] != -100).sum()) for e in tokens.examples(np.arange(7))]
    assert tokens.items.tolist() == counts
    assert tokens.examples(np.array([], dtype=np.int64)) == []


def test_c7_truncation_and_rows_without_items_are_counted_and_named(tmp_path, tokenizer):
    source = write(tmp_path / "a.jsonl", ROWS)
    whole = prepare(source, tokenizer, 512, tmp_path)
    cut = prepare(source, tokenizer, 12, tmp_path)
    assert whole.report.num_truncated == 0
    lost = np.maximum(whole.lengths - 12, 0)
    assert cut.report.num_truncated == (lost > 0).sum() > 0
    assert cut.report.num_truncated_tokens == lost.sum()
    assert cut.lengths.max() == 12
    assert cut.report.num_without_items == (cut.items == 0).sum() > 0
    assert cut.report.num_cut_to_no_items == cut.report.num_without_items
    last = cut.report.rows_without_items[-1]
    assert str(source.places([last])[0]) == f"{source.name}: row 7"
    assert cut.report.shapes == {"prompt, completion": 7}


def test_the_cache_is_found_by_content(tmp_path, tokenizer, monkeypatch):
    first = prepare(write(tmp_path / "a.jsonl", ROWS), tokenizer, 512, tmp_path)
    made = []
    write_tokens = tokens_module._write
    monkeypatch.setattr(
        tokens_module, "_write", lambda *args: made.append(args) or write_tokens(*args)
    )
    again = prepare(write(tmp_path / "other name.jsonl", ROWS), tokenizer, 512, tmp_path)
    assert made == []
    assert again.sha256 == first.sha256
    changed = prepare(write(tmp_path / "a.jsonl", ROWS[1:]), tokenizer, 512, tmp_path)
    assert (len(made), len(changed)) == (1, len(ROWS) - 1)
    prepare(write(tmp_path / "a.jsonl", ROWS), tokenizer, 16, tmp_path)
    assert len(made) == 2
    # The embedded tokenizer is another under a Python with other sources.
    monkeypatch.setattr(tokenizers, "_texts", lambda: iter(["another corpus"]))
    other = prepare(write(tmp_path / "a.jsonl", ROWS), tokenizers._train(), 512, tmp_path)
    assert other.sha256 != first.sha256


def prepare_in_process(source: Source, cache: Path, queue) -> None:
    tokenizer = tokenizers.load("embedded", cache)
    queue.put(prepare(source, tokenizer, 64, cache).lengths.tolist())


def test_ranks_that_start_together_make_one_cache(tmp_path, tokenizer):
    source = write(tmp_path / "a.jsonl", ROWS)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=prepare_in_process, args=(source, tmp_path / "cache", queue))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert results[0] == results[1]
    folders = [p for p in (tmp_path / "cache" / "tokens").iterdir() if p.is_dir()]
    assert len(folders) == 1


def test_a_broken_row_leaves_no_cache_behind(tmp_path, tokenizer):
    source = write(tmp_path / "a.jsonl", [*ROWS, {"text": 3}])
    for _ in range(2):
        with pytest.raises(DataError, match="row 8"):
            prepare(source, tokenizer, 64, tmp_path)
    prepare(write(tmp_path / "a.jsonl", ROWS), tokenizer, 64, tmp_path)


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["no rows"]),
        (b"\n\n", ["no rows"]),
        (b'{"text": "a"}\n{"text": \n', ["row 2", "not JSON", '{"text":']),
        (b'{"text": "a"}\n\n["a"]\n', ["row 3", "a list", "one JSON object"]),
        (b'{"text": "\xff\xfe"}\n', ["row 1", "not UTF-8"]),
    ],
)
def test_c6_bad_files_name_file_and_row(tmp_path, tokenizer, content, fragments):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        prepare(Source(str(path), "train"), tokenizer, 64, tmp_path)
    for fragment in [str(path), *fragments]:
        assert fragment in str(raised.value)
