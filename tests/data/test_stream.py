"""Streams: windows are a function of (rows, seed, n); nothing is indexed; mistakes name the row."""

import shutil
from itertools import islice, pairwise, takewhile
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writing import WRITERS, json_lines

from gradacc_dist.config.schema import Config
from gradacc_dist.data import tokenizer as tokenizers
from gradacc_dist.data.load import load_data
from gradacc_dist.data.order import Order
from gradacc_dist.data.sources import Source
from gradacc_dist.data.stream import Stream, Tokenising
from gradacc_dist.data.stream_order import StreamOrder
from gradacc_dist.errors import DataError
from gradacc_dist.items import count_causal_items
from gradacc_dist.objectives.causal_lm import CausalLM
from gradacc_dist.windows import Assembler

sizes = st.lists(st.integers(1, 12), min_size=1, max_size=40)
buffers = st.integers(0, 50)
seeds = st.integers(0, 2**63)


@pytest.fixture(scope="module")
def stream_of(embedded_tokenizer, tmp_path_factory):
    """A stream whose n-th row holds `counts[n]` tokens, all but the first of them items."""
    path = tmp_path_factory.mktemp("stream") / "rows.jsonl"

    def make(counts, **options) -> Stream:
        json_lines(path, [{"input_ids": [number + 2] * n} for number, n in enumerate(counts)])
        return stream(embedded_tokenizer, path, **options)

    return make


def stream(tokenizer, *paths, supervise="auto", max_length=100, on_zero_items="keep") -> Stream:
    sources = [Source(str(path), "train", streaming=True) for path in paths]
    return Stream(sources, Tokenising(tokenizer, supervise, max_length, on_zero_items))


def described(window):
    return window.step, window.epoch, window.examples_seen, window.example_ids.tolist()


def epochs_of(order, num):
    return list(takewhile(lambda window: window.epoch < num, order.windows()))


@given(counts=sizes, window=st.integers(1, 50), buffer=buffers, seed=seeds)
def test_windows_by_count_hold_each_example_once_per_epoch(stream_of, counts, window, buffer, seed):
    made = epochs_of(StreamOrder(stream_of(counts), seed, buffer, window), 2)
    for epoch in range(2):
        ours = [w.example_ids.tolist() for w in made if w.epoch == epoch]
        assert sorted(i for ids in ours for i in ids) == list(range(len(counts)))
        assert all(len(ids) == window for ids in ours[:-1])
    assert [w.step for w in made] == list(range(1, len(made) + 1))
    assert [w.examples_seen for w in made] == np.cumsum([len(w.example_ids) for w in made]).tolist()


@given(counts=sizes, budget=st.integers(1, 40), buffer=buffers, seed=seeds)
def test_a_budget_takes_examples_in_order_while_they_fit(stream_of, counts, budget, buffer, seed):
    rows = stream_of(counts)
    made = epochs_of(StreamOrder(rows, seed, buffer, window_items=budget), 2)
    plain = epochs_of(StreamOrder(rows, seed, buffer, window_examples=1), 2)
    in_order = [i for w in made for i in w.example_ids.tolist()]
    assert in_order == [i for w in plain for i in w.example_ids.tolist()]
    items = np.array(counts) - 1
    for window, following in pairwise(made):
        total = items[window.example_ids].sum()
        assert total <= budget or len(window.example_ids) == 1
        if following.epoch == window.epoch:
            assert total + items[following.example_ids[0]] > budget


@given(counts=sizes, budget=st.integers(1, 40))
def test_a_budget_cuts_as_the_indexed_order_does(stream_of, counts, budget):
    """The same rule from the other implementation, on rows put in the order that it draws."""
    items = np.array(counts) - 1
    indexed = [
        w.example_ids for w in epochs_of(Order(len(counts), 0, window_items=budget, items=items), 1)
    ]
    reordered = [counts[i] for ids in indexed for i in ids]
    streamed = epochs_of(StreamOrder(stream_of(reordered), 0, 0, window_items=budget), 1)
    assert [len(w.example_ids) for w in streamed] == [len(ids) for ids in indexed]


@given(
    counts=sizes,
    size=st.integers(1, 20),
    by_items=st.booleans(),
    buffer=buffers,
    seed=seeds,
    step=st.integers(0, 90),
)
def test_a_run_that_starts_midway_sees_the_same_windows(
    stream_of, counts, size, by_items, buffer, seed, step
):
    sized = {"window_items" if by_items else "window_examples": size}
    order = StreamOrder(stream_of(counts), seed, buffer, **sized)
    whole = list(islice(order.windows(), step + 4))
    before = whole[step]
    again = islice(order.windows(before.step + 1, before.examples_seen), 3)
    assert list(map(described, again)) == list(map(described, whole[step + 1 :]))


@given(num=st.integers(1, 60), buffer=buffers, seed=seeds, epoch=st.integers(0, 3))
def test_a_row_comes_less_than_a_buffer_early(stream_of, num, buffer, seed, epoch):
    """Bounded memory: what comes at position p was read by then."""
    made = epochs_of(StreamOrder(stream_of([1] * num), seed, buffer, 7), epoch + 1)
    ids = [i for w in made if w.epoch == epoch for i in w.example_ids.tolist()]
    assert all(i <= position + max(buffer, 1) - 1 for position, i in enumerate(ids))
    if buffer <= 1:
        assert ids == list(range(num))


def test_the_buffer_reads_no_further_than_it_holds(stream_of, monkeypatch):
    read = []
    rows = stream_of([1] * 100)
    original = Stream.rows
    monkeypatch.setattr(Stream, "rows", lambda self: (read.append(r) or r for r in original(self)))
    windows = StreamOrder(rows, 0, 10, 5).windows()
    for number in range(1, 5):
        next(windows)
        assert len(read) <= 10 + 5 * number
        assert len(rows._held) == 5


def test_the_shuffled_order_is_fixed_for_good(stream_of):
    """Literal ids: a change of this code would change users' runs. Epochs and seeds differ."""
    rows = stream_of([1] * 12)
    ids = [w.example_ids.tolist() for w in epochs_of(StreamOrder(rows, 0, 4, 12), 2)]
    assert ids == [FIRST, SECOND]
    (other,) = epochs_of(StreamOrder(rows, 1, 4, 12), 1)
    assert other.example_ids.tolist() not in ids


FIRST = [1, 2, 0, 5, 6, 4, 3, 9, 10, 8, 7, 11]
SECOND = [2, 1, 0, 4, 3, 5, 6, 8, 9, 11, 10, 7]


@settings(max_examples=20)
@given(
    counts=sizes,
    window=st.integers(1, 20),
    by_items=st.booleans(),
    micro_batch=st.integers(1, 9),
    ranks=st.integers(1, 5),
)
def test_the_examples_do_not_depend_on_ranks_and_micro_batch(
    stream_of, counts, window, by_items, micro_batch, ranks
):
    """Over all ranks, each window's cells hold what one rank with one micro-batch has."""
    sized = {"window_items" if by_items else "window_examples": window}

    def made(micro_batch, rank, ranks):
        rows = stream_of(counts, max_length=9)
        assembler = Assembler(rows, CausalLM(), micro_batch, rank, ranks, "test")
        return [
            assembler.assemble(w) for w in islice(StreamOrder(rows, 3, 8, **sized).windows(), 5)
        ]

    for whole, *parts in zip(
        made(100, 0, 1), *(made(micro_batch, rank, ranks) for rank in range(ranks)), strict=True
    ):
        assert {part.window.ids_sha256 for part in parts} == {whole.window.ids_sha256}
        for name in ("input_tokens", "truncated_examples", "truncated_tokens"):
            ours = sum(getattr(part.counts, name) for part in parts)
            assert ours == getattr(whole.counts, name)
        items = sum(part.counts.local_items["cross_entropy"] for part in parts)
        assert items == whole.counts.local_items["cross_entropy"]
        lost = [max(0, counts[i] - 9) for i in whole.window.example_ids]
        assert whole.counts.truncated_tokens == sum(lost)


ROWS = [{"prompt": f"say {n}: ", "completion": f"{n} " * n} for n in range(1, 20)]


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_examples_are_those_of_indexed_data(name, tmp_path, embedded_cache, embedded_tokenizer):
    path = WRITERS[name](tmp_path / name, ROWS)
    data = {"train": str(path), "cache_dir": str(embedded_cache)}
    model = {"tokenizer": "embedded"}
    indexed = load_data(Config.model_validate({"model": model, "data": data})).train
    rows = stream(embedded_tokenizer, path)
    seen = 0
    for window in islice(StreamOrder(rows, 0, 6, 4).windows(), 5):
        ours, theirs = (source.examples(window.example_ids) for source in (rows, indexed))
        for one, other in zip(ours, theirs, strict=True):
            assert one.input_ids.tolist() == other.input_ids.tolist()
            assert one.labels.tolist() == other.labels.tolist()
            seen += 1
    assert seen == len(ROWS)


def test_windows_by_count_tokenise_only_what_is_asked_for(stream_of, monkeypatch):
    rows = stream_of([3] * 50)
    encoded = []
    original = Stream.encoded
    monkeypatch.setattr(
        Stream, "encoded", lambda self, asked: encoded.extend(asked) or original(self, asked)
    )
    windows = StreamOrder(rows, 0, 4, 10).windows(3, 20)
    window = next(windows)
    assert encoded == []
    rows.examples(window.example_ids[2:4])
    assert [row.id for row in encoded] == window.example_ids[2:4].tolist()


def test_sources_follow_each_other_and_folders_are_sorted(tmp_path, embedded_tokenizer):
    folder = tmp_path / "folder"
    folder.mkdir()
    json_lines(folder / "b.jsonl", [{"text": "third"}])
    json_lines(folder / "a.jsonl", [{"prompt": "first ", "completion": "one"}, ROWS[0]])
    last = json_lines(tmp_path / "a.jsonl", [{"text": "last"}])
    rows = stream(embedded_tokenizer, folder, last).rows()
    assert [(row.id, Path(row.place.file).name, row.place.row) for row in rows] == [
        (0, "a.jsonl", 1),
        (1, "a.jsonl", 2),
        (2, "b.jsonl", 1),
        (3, "a.jsonl", 1),
    ]


GOOD = {"text": "fine"}
MISTAKES = {
    "json": ("{", "row 5: not JSON"),
    "shape": ('{"prompt": "x"}', "row 5: its columns are prompt"),
    "type": ('{"text": 5}', "row 5: text is int ('5'), but must be a string"),
    "no items": ('{"text": ""}', "row 5: holds no supervised token; change or remove"),
}


@pytest.mark.parametrize("by_items", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_its_row_in_its_window(mistake, by_items, tmp_path, embedded_tokenizer):
    """Unshuffled windows of two: the third holds the bad row, the two before it are made."""
    text, expected = MISTAKES[mistake]
    path = json_lines(tmp_path / "a.jsonl", [GOOD] * 7)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], text, *lines[5:]]))
    rows = stream(embedded_tokenizer, path, on_zero_items="error")
    (example,) = rows.encoded([next(rows.rows())])
    items = 2 * count_causal_items(example.labels)
    sized = {"window_items": items} if by_items else {"window_examples": 2}
    made = []

    def make_all():
        for window in StreamOrder(rows, 0, 0, **sized).windows():
            rows.examples(window.example_ids)
            made.append(window.example_ids.tolist())

    with pytest.raises(DataError) as raised:
        make_all()
    assert str(raised.value).startswith(f"{path}: {expected}")
    # To know that a budget is full, the row after it must have been counted.
    assert made == ([[0, 1]] if by_items else [[0, 1], [2, 3]])


def test_a_mistake_of_one_ranks_share_is_filler_and_told(tmp_path, embedded_tokenizer):
    path = json_lines(tmp_path / "a.jsonl", [GOOD] * 3 + [{"text": ""}])
    rows = stream(embedded_tokenizer, path, on_zero_items="error")
    (window,) = islice(StreamOrder(rows, 0, 0, 4).windows(), 1)
    first, second = (
        Assembler(rows, CausalLM(), 2, rank, 2, "test").assemble(window) for rank in range(2)
    )
    assert not first.counts.has_mistake
    assert second.counts.has_mistake
    assert second.mistake.startswith(f"{path}: row 4: holds no supervised token")
    assert second.counts.input_tokens == 0
    assert second.counts.num_turns == first.counts.num_turns
    assert second.counts.fingerprint == first.counts.fingerprint


def test_rows_cut_to_no_items_say_so(tmp_path, embedded_tokenizer):
    path = json_lines(tmp_path / "a.jsonl", [{"prompt": "a long prompt " * 9, "completion": "x"}])
    rows = stream(embedded_tokenizer, path, max_length=4, on_zero_items="error")
    with pytest.raises(
        DataError, match=r"row 1: holds no .* after data.max_length 4 cut it; raise"
    ):
        rows.encoded(list(rows.rows()))
    kept = stream(embedded_tokenizer, path, max_length=4)
    (example,) = kept.encoded(list(kept.rows()))
    assert len(example.input_ids) == 4
    assert example.num_lost_tokens > 20


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, "cannot be read (No such file"),
        ("", "no rows"),
        ('{"text": 5}', "row 1: text is int"),
    ],
)
def test_plain_mistakes_show_before_training(content, fragment, tmp_path, embedded_cache):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    data = {"train": str(path), "streaming": True, "cache_dir": str(embedded_cache)}
    with pytest.raises(DataError, match=f"a.jsonl: {fragment}".replace("(", r"\(")):
        load_data(Config.model_validate({"model": {"tokenizer": "embedded"}, "data": data}))


def test_a_stream_is_known_without_reading_it_all(tmp_path, embedded_tokenizer, monkeypatch):
    """Its hash follows sizes, beginnings and settings; nothing goes to the cache."""
    monkeypatch.setattr("gradacc_dist.data.files.BLOCK_BYTES", 100)
    path = json_lines(tmp_path / "a.jsonl", ROWS)
    sha256 = stream(embedded_tokenizer, path).sha256
    moved = tmp_path / "moved.jsonl"
    shutil.copy(path, moved)
    assert stream(embedded_tokenizer, moved).sha256 == sha256
    assert stream(embedded_tokenizer, path, max_length=99).sha256 != sha256
    monkeypatch.setattr("gradacc_dist.data.tokenizer._texts", lambda: iter(["another corpus"]))
    assert stream(tokenizers._train(), path).sha256 != sha256
    moved.write_text(moved.read_text().replace("say 1:", "SAY 1:"))
    assert stream(embedded_tokenizer, moved).sha256 != sha256
    assert stream(embedded_tokenizer, json_lines(moved, ROWS[:-1])).sha256 != sha256


class Builder:
    """Stands for a dataset of the hub."""

    hash = "commit"

    def as_streaming_dataset(self, split):
        assert split == "train"
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()


def test_hub_names_are_streamed(tmp_path, monkeypatch, embedded_tokenizer):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda *name: asked.append(name) or Builder()
    )
    monkeypatch.setattr(datasets, "load_dataset", None)
    rows = stream(embedded_tokenizer, "a/b/c")
    assert [row.row for row in rows.rows()] == ROWS
    assert [str(row.place) for row in rows.rows()][6] == "a/b/c: row 7"
    assert asked == [("a/b", "c")]


def test_a_hub_that_stops_to_deliver_is_one_line(tmp_path, monkeypatch, embedded_tokenizer):
    monkeypatch.chdir(tmp_path)

    def broken():
        yield ROWS[0]
        raise ConnectionError("gone\naway")

    builder = Builder()
    builder.as_streaming_dataset = lambda split: datasets.IterableDataset.from_generator(broken)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *name: builder)
    rows = stream(embedded_tokenizer, "a/b")
    with pytest.raises(
        DataError, match=r"a/b: the Hugging Face hub stopped to deliver \(gone away"
    ):
        list(rows.rows())
