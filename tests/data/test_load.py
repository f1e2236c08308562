"""A run's data, as its configuration says."""

import numpy as np
import pytest
from writing import json_lines

from gradacc_dist.config.schema import Config
from gradacc_dist.data.load import load_data
from gradacc_dist.errors import DataError

ROWS = [{"prompt": f"{n} " * n, "completion": "yes"} for n in range(1, 11)]


@pytest.fixture
def config(tmp_path, embedded_cache, embedded_tokenizer):
    def make(**data):
        data = {"cache_dir": str(embedded_cache), **data}
        return Config.model_validate({"model": {"tokenizer": "embedded"}, "data": data})

    return make


def test_a_mixture_holds_its_sources_by_weight(config, tmp_path):
    a = str(json_lines(tmp_path / "a.jsonl", ROWS))
    b = str(json_lines(tmp_path / "b.jsonl", [{"text": "one two"}, {"text": "three"}]))
    train = [{"path": a, "weight": 0.5}, {"path": b, "weight": 3}]
    data = load_data(config(train=train, evaluate=b))
    assert len(data.train) == 5 + 6
    assert [data.train.num_examples(n) for n in range(2)] == [5, 6]
    assert len(data.evaluate) == 2
    *_, last = data.train.examples(np.arange(11))
    assert data.tokenizer.decode(last.input_ids) == "three<|endoftext|>"
    assert load_data(config(train=a)).evaluate is None


def test_c7_rows_without_items_are_kept_when_they_may_be(config, tmp_path):
    """The verdict is not cached: the same tokens are refused, allowed, and refused again."""
    path = str(json_lines(tmp_path / "a.jsonl", ROWS))
    for allowed in [False, True, False]:
        if allowed:
            data = load_data(config(train=path, max_length=8, on_zero_items="keep"))
            assert (data.train.items == 0).sum() > 0
            continue
        with pytest.raises(DataError, match=r"had some before data.max_length 8 cut them"):
            load_data(config(train=path, max_length=8))


def test_supervision_decides_anew_for_cached_rows(config, tmp_path):
    path = str(json_lines(tmp_path / "a.jsonl", ROWS[:2]))
    counts = [
        load_data(config(train=path, supervise=supervise)).train.items.tolist()
        for supervise in ["auto", "all", "completion"]
    ]
    assert counts[0] == counts[2]
    assert min(counts[1]) > max(counts[0])


def test_places_are_those_of_the_file_at_hand(config, tmp_path):
    """Tokens are found by content: a report must not name the file that another run read."""
    for name in ["first.jsonl", "second.jsonl"]:
        path = json_lines(tmp_path / name, [*ROWS, {"text": ""}][10:])
        with pytest.raises(DataError, match=rf"\({path}: row 1\)"):
            load_data(config(train=str(path)))


def test_c5_progress_names_source_and_rows(config, tmp_path, monkeypatch):
    monkeypatch.setattr("gradacc_dist.data.tokens.ROWS_PER_BATCH", 4)
    path = str(json_lines(tmp_path / "a.jsonl", [{"text": "c5 progress"}] * 10))
    told = []
    load_data(config(train=path), lambda *seen: told.append(seen))
    assert told == [(path, 0), (path, 4), (path, 8), (path, 10)]
    load_data(config(train=path), lambda *seen: told.append(seen))
    assert len(told) == 4


def test_a_chat_template_is_read_and_goes_with_the_model(config, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    row = {"messages": [{"role": "assistant", "content": "yes"}]}
    path = str(json_lines(tmp_path / "a.jsonl", [row]))
    data = load_data(config(train=path, chat_template=str(template), supervise="all"))
    assert data.tokenizer.decode(data.train.examples(np.array([0]))[0].labels) == "yes<|endoftext|>"
    assert data.tokenizer.chat_template == template.read_text()


def test_the_embedded_corpus_fits_the_demo(config):
    """No row of either split loses all its items to the demo's max_length."""
    data = load_data(config(train="embedded", evaluate="embedded", max_length=512))
    assert min(data.train.items.min(), data.evaluate.items.min()) > 0
    assert len(data.train) > 1000
