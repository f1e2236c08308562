"""A corpus of broken data: each names file, row and remedy, as one DataError (C6, exit code 11)."""

import copy
import json
import re

import pyarrow as pa
import pytest
from chat_templates import CHATML, SPECIAL, unmarked
from writing import arrow_stream, gzipped, json_array, json_lines, parquet

from gradacc_dist.config.fields import nested
from gradacc_dist.config.schema import Config
from gradacc_dist.data import load
from gradacc_dist.errors import DataError

FINE = {"text": "fine enough"}
PAIR = {"prompt": "a b", "completion": "c d"}
USER, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}
CHAT = {"messages": [USER, ANSWER]}
UNKNOWN = "a row needs one of: input_ids, labels"


def bytes_of(content):
    return lambda path: path.write_bytes(content)


def lines(*rows):
    return lambda path: json_lines(path, list(rows))


def as_parquet(*rows):
    return lambda path: parquet(path, list(rows))


def cut_short(write, *rows):
    def broken(path):
        content = write(path, list(rows)).read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])

    return broken


def in_folder(**files):
    def write(path):
        path.mkdir()
        for name, content in files.items():
            (path / name.replace("__", ".")).write_bytes(content)

    return write


def no_utf8_parquet(path):
    column = pa.array([b"fine", b"\xff\xfe"]).cast(pa.string(), safe=False)
    pa.parquet.write_table(pa.table({"text": column}), path)


# (name of the file, how to write it, what is set, row, parts of the message)
BROKEN = {
    "no such file": ("a.jsonl", None, {}, None, ["No such file", "seen from"]),
    "no such folder": ("no such/x", None, {}, None, ["seen from"]),
    "unknown kind": ("a.csv", bytes_of(b"text\na\n"), {}, None, [".csv is no kind", ".parquet"]),
    "no ending": ("data", bytes_of(b"text\na\n"), {}, None, ["no ending is no kind", ".jsonl"]),
    "empty file": ("a.jsonl", bytes_of(b""), {}, None, ["no rows"]),
    "empty array": ("a.json", bytes_of(b"[]"), {}, None, ["no rows"]),
    "empty text": ("a.txt", bytes_of(b"\n \n"), {}, None, ["no rows"]),
    "empty folder": ("d", in_folder(), {}, None, ["holds no file to read (0 of other"]),
    "folder of others": ("d", in_folder(a__md=b"a"), {}, None, ["(1 of other kinds)", ".arrow"]),
    "not JSON": (
        "a.jsonl",
        bytes_of(b'{"text": "a"}\n{text: "b"}\n'),
        {},
        2,
        ["not JSON", "{text:"],
    ),
    "cut JSON": (
        "a.jsonl",
        bytes_of(b'{"text": "a"}\n{"text": "b'),
        {},
        2,
        ["not JSON", "column 10"],
    ),
    "a list": (
        "a.jsonl",
        bytes_of(b'{"text": "a"}\n["b"]\n'),
        {},
        2,
        ["a list", "one JSON object"],
    ),
    "array of texts": (
        "a.json",
        lambda path: json_array(path, ["a"]),
        {},
        1,
        ["a str, but each row"],
    ),
    "array not closed": (
        "a.json",
        bytes_of(b'[\n{"text": 1},\n'),
        {},
        None,
        ["not JSON", "line 2"],
    ),
    "pretty JSON": (
        "a.json",
        bytes_of(json.dumps(FINE, indent=1).encode()),
        {},
        1,
        ["each line must"],
    ),
    "nested": ("a.jsonl", bytes_of(b"[" * 200_000), {}, 1, ["nested too deeply"]),
    "latin-1 JSON": (
        "a.jsonl",
        bytes_of(b'{"text": "caf\xe9"}\n'),
        {},
        1,
        ["not UTF-8", "byte 13"],
    ),
    "latin-1 text": (
        "a.txt",
        bytes_of(b"fine\ncaf\xe9\n"),
        {},
        2,
        ["not UTF-8", "save it as UTF-8"],
    ),
    "no Parquet": (
        "a.parquet",
        bytes_of(b"PAR1 not at all"),
        {},
        None,
        ["cannot be read", ".parquet"],
    ),
    "cut Parquet": ("a.parquet", cut_short(parquet, FINE), {}, None, ["cannot be read", "a whole"]),
    "no Arrow": ("a.arrow", bytes_of(b"text"), {}, None, ["cannot be read", ".arrow"]),
    "cut Arrow": ("a.arrow", cut_short(arrow_stream, FINE), {}, None, ["cannot be read", ".arrow"]),
    "no gzip": ("a.jsonl.gz", bytes_of(b'{"text": 1}'), {}, None, ["cannot be read", "gzip"]),
    "cut gzip": (
        "a.jsonl.gz",
        cut_short(gzipped, *[FINE] * 9),
        {},
        None,
        ["cannot be read", "ended"],
    ),
    "not UTF-8 in Parquet": ("a.parquet", no_utf8_parquet, {}, 1, ["not UTF-8", "save it"]),
    "unknown columns": ("a.jsonl", lines({"txt": "a"}), {}, 1, ["columns are txt", UNKNOWN]),
    "question and answer": (
        "a.jsonl",
        lines({"question": "a", "answer": "b"}),
        {},
        1,
        ["columns are question, answer", "rename question to prompt, answer to completion?"],
    ),
    "no columns": ("a.jsonl", lines({}), {}, 1, ["columns are none", UNKNOWN]),
    "half a pair": ("a.jsonl", lines({"prompt": "a"}), {}, 1, ["columns are prompt", UNKNOWN]),
    "mixed shapes": (
        "a.jsonl",
        lines(FINE, FINE, PAIR),
        {},
        3,
        ["columns are prompt, completion", "a.jsonl: row 1 has text", "divide the file"],
    ),
    "a column is gone": ("a.jsonl", lines(FINE, {"t": "a"}), {}, 2, ["it needs text, as the rows"]),
    "text is null": ("a.jsonl", lines(FINE, {"text": None}), {}, 2, ["text is null", "a string"]),
    "null in Parquet": ("a.parquet", as_parquet(FINE, {"text": None}), {}, 2, ["text is null"]),
    "text is a number": ("a.jsonl", lines({"text": 5}), {}, 1, ["text is int ('5')", "a string"]),
    "half a character": (
        "a.jsonl",
        bytes_of(b'{"text": "a\\ud83d"}'),
        {},
        1,
        ["character 1 is half of a pair (U+D83D)", "remove it"],
    ),
    "completion is a list of texts": (
        "a.jsonl",
        lines({"prompt": "a", "completion": ["b"]}),
        {},
        1,
        ["prompt is str ('a')", "a list of messages"],
    ),
    "messages empty": ("a.jsonl", lines(CHAT, {"messages": []}), {}, 2, ["messages is empty"]),
    "messages null": ("a.jsonl", lines({"messages": None}), {}, 1, ["messages is null", '"role"']),
    "messages are text": (
        "a.jsonl",
        lines({"messages": "a"}),
        {},
        1,
        ["messages is str", "list of"],
    ),
    "a message is text": (
        "a.jsonl",
        lines({"messages": [USER, "yes"]}),
        {},
        1,
        ["messages[1] is str ('yes')", '{"role": ..., "content": ...}'],
    ),
    "no role": (
        "a.jsonl",
        lines({"messages": [USER, {"content": "a"}]}),
        {},
        1,
        ["messages[1] has no role, only content", "needs role and content"],
    ),
    "ShareGPT": (
        "a.jsonl",
        lines({"messages": [{"from": "human", "value": "a"}]}),
        {},
        1,
        ["rename from to role and value to content"],
    ),
    "ShareGPT column": (
        "a.jsonl",
        lines({"conversations": []}),
        {},
        1,
        ["conversations to messages?"],
    ),
    "no content": (
        "a.jsonl",
        lines({"messages": [USER, {"role": "assistant"}]}),
        {},
        1,
        ["messages[1] has no content, only role", 'write "" where'],
    ),
    "content is null": (
        "a.parquet",
        as_parquet(CHAT, {"messages": [USER, {"role": "assistant", "content": None}]}),
        {},
        2,
        ["messages[1] has no content"],
    ),
    "content is a number": (
        "a.jsonl",
        lines({"messages": [{"role": "user", "content": 4}]}),
        {},
        1,
        ["messages[0].content is int ('4'), but must be a string"],
    ),
    "content is an image": (
        "a.jsonl",
        lines({"messages": [{"role": "user", "content": [{"type": "image", "url": "a"}]}]}),
        {},
        1,
        ["messages[0].content[0] is str ('image')", "only parts of type text"],
    ),
    "tools are text": (
        "a.jsonl",
        lines({**CHAT, "tools": "x"}),
        {},
        1,
        ["tools is str", "schemas"],
    ),
    "prompt without messages": (
        "a.jsonl",
        lines({"prompt": [], "completion": [ANSWER]}),
        {},
        1,
        ["prompt is empty"],
    ),
    "no chat template": (
        "a.jsonl",
        lines(CHAT),
        {"model.tokenizer": "embedded"},
        1,
        ["the tokenizer has none", "data.chat_template"],
    ),
    "template missing": (
        "a.jsonl",
        lines(CHAT),
        {"data.chat_template": "none.jinja"},
        None,
        ["none.jinja cannot be read", "No such file"],
    ),
    "supervise does not fit": (
        "a.jsonl",
        lines(FINE),
        {"data.supervise": "assistant"},
        1,
        ["data.supervise: assistant does not fit columns text", "auto or all"],
    ),
    "ids are text": (
        "a.jsonl",
        lines({"input_ids": "1 2"}),
        {},
        1,
        ["input_ids is str", "list of"],
    ),
    "ids are empty": ("a.jsonl", lines({"input_ids": []}), {}, 1, ["input_ids is an empty list"]),
    "ids are fractions": (
        "a.jsonl",
        lines({"input_ids": [1, 2.5]}),
        {},
        1,
        ["input_ids[1] is float ('2.5')", "an integer"],
    ),
    "ids with null": ("a.parquet", as_parquet({"input_ids": [1, None]}), {}, 1, ["[1] is null"]),
    "ids out of vocabulary": (
        "a.jsonl",
        lines({"input_ids": [1, 2]}, {"input_ids": [1, 99999]}),
        {},
        2,
        ["input_ids[1] is 99999, outside", "another tokenizer"],
    ),
    "negative ids": ("a.jsonl", lines({"input_ids": [1, -100]}), {}, 1, ["input_ids[1] is -100"]),
    "too few labels": (
        "a.jsonl",
        lines({"input_ids": [1, 2], "labels": [1]}),
        {},
        1,
        ["1 labels for 2 input_ids", "-100 where nothing"],
    ),
    "labels null": (
        "a.jsonl",
        lines({"input_ids": [1], "labels": None}),
        {},
        1,
        ["labels is null"],
    ),
    "no item": (
        "a.jsonl",
        lines(FINE, *[{"text": ""}] * 7),
        {},
        2,
        ["7 of 8 rows hold no supervised token", "row 6 and 2 more)", "data.on_zero_items: keep"],
    ),
    "no item: cut": (
        "a.jsonl",
        lines({"prompt": "a " * 50, "completion": "b"}),
        {"data.max_length": 8},
        1,
        ["1 of them had some before data.max_length 8", "raise data.max_length"],
    ),
    "no item: nobody answers": (
        "a.jsonl",
        lines(CHAT, {"messages": [USER]}),
        {},
        2,
        ["1 of 2 rows hold no supervised token", "change or remove"],
    ),
}


@pytest.fixture(scope="module")
def chat_tokenizer(embedded_tokenizer):
    chat = copy.deepcopy(embedded_tokenizer)
    chat.add_special_tokens({"additional_special_tokens": SPECIAL})
    chat.chat_template = unmarked(CHATML)
    return chat


@pytest.mark.parametrize("name", BROKEN)
def test_c6_broken_data_names_file_row_and_remedy(
    name, tmp_path, monkeypatch, chat_tokenizer, embedded_tokenizer
):
    file, write, settings, row, fragments = BROKEN[name]
    path = tmp_path / file
    if write is not None:
        write(path)
    settings = {"model.tokenizer": "chat", "data.train": str(path), **settings}
    known = {"chat": chat_tokenizer, "embedded": embedded_tokenizer}
    monkeypatch.setattr(load.tokenizers, "load", lambda name, cache: copy.copy(known[name]))
    config = Config.model_validate(nested({**settings, "data.cache_dir": str(tmp_path / "cache")}))

    with pytest.raises(DataError) as raised:
        load.load_data(config)

    message = str(raised.value)
    assert raised.value.exit_code == 11
    if "chat_template" not in message or row is not None:
        assert str(path) in message
    if row is not None:
        assert re.search(rf"{re.escape(file)}: row {row}\b", message)
    for fragment in fragments:
        assert fragment in message
    assert "\n" not in message
    assert "Traceback" not in message


def test_the_corpus_is_large_enough():
    assert len(BROKEN) >= 30
