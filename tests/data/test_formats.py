"""Formats: the shape of a row decides what is supervised, unless the user does."""

import pytest

from gradacc_dist.data.formats import Encoder
from gradacc_dist.data.rows import Place
from gradacc_dist.data.shapes import SHAPES, shape_of, shaped
from gradacc_dist.errors import DataError


class Letters:
    """A tokenizer that makes a token of each letter; bos 1, eos 2."""

    eos_token_id = 2

    def __init__(self, bos: int | None = None) -> None:
        self.bos_token_id = bos

    def __len__(self):
        return 128

    def __call__(self, texts, add_special_tokens=True):
        prefix = [self.bos_token_id] if self.bos_token_id and add_special_tokens else []
        if isinstance(texts, str):
            return {"input_ids": prefix + [ord(letter) for letter in texts]}
        return {"input_ids": [prefix + [ord(letter) for letter in text] for text in texts]}


def encode(row: dict, bos: int | None = None, supervise="auto"):
    rows = shaped(iter([(Place("rows.jsonl", 3), row)]))
    return Encoder(Letters(bos), supervise).encode(rows)[0]


def test_text_is_supervised_whole_and_ends():
    assert encode({"text": "ab"}) == ([97, 98, 2], [97, 98, 2])


def test_only_the_completion_and_its_end_are_supervised():
    row = {"prompt": "ab", "completion": "c"}
    assert encode(row) == ([97, 98, 99, 2], [-100, -100, 99, 2])
    assert encode(row, supervise="completion") == encode(row)
    assert encode(row, supervise="all") == ([97, 98, 99, 2], [97, 98, 99, 2])


def test_a_tokenizer_that_begins_with_bos_still_does_once():
    row = {"prompt": "a", "completion": "b"}
    assert encode(row, bos=1) == ([1, 97, 98, 2], [-100, -100, 98, 2])


def test_token_ids_are_taken_as_they_are():
    assert encode({"input_ids": [5, 6]}, bos=1) == ([5, 6], [5, 6])
    assert encode({"input_ids": [5, 6], "labels": [-100, 6]}) == ([5, 6], [-100, 6])


def test_other_columns_are_carried_along_unread():
    assert encode({"text": "a", "id": 3}) == encode({"text": "a"})


def test_of_several_shapes_the_most_explicit_is_read():
    names = ["text", "completion", "prompt", "messages", "input_ids", "labels"]
    found = [str(shape_of(dict.fromkeys(names[: n + 1]))) for n in range(len(names))]
    assert found == [
        "text",
        "text",
        "prompt, completion",
        "messages",
        "input_ids",
        "input_ids, labels",
    ]
    assert shape_of({}) is None
    assert len(SHAPES) == 5


def test_rows_of_several_shapes_stay_in_order():
    rows = [({"text": "a"}, "x"), ({"input_ids": [3]}, "y"), ({"text": "b"}, "z")]
    places = [(Place(file, 1), row) for row, file in rows]
    encoded = Encoder(Letters()).encode(shaped(iter(places)))
    assert [example.input_ids for example in encoded] == [[97, 2], [3], [98, 2]]


@pytest.mark.parametrize(
    ("row", "supervise", "legal"),
    [
        ({"text": "a"}, "assistant", "auto or all"),
        ({"text": "a"}, "completion", "auto or all"),
        ({"prompt": "a", "completion": "b"}, "assistant", "auto or completion or all"),
        ({"input_ids": [1]}, "completion", "auto or all"),
        ({"input_ids": [1], "labels": [1]}, "all", "auto"),
    ],
)
def test_supervision_that_rows_cannot_tell_is_refused(row, supervise, legal):
    with pytest.raises(DataError) as raised:
        encode(row, supervise=supervise)
    message = str(raised.value)
    assert message.startswith(f"rows.jsonl: row 3: data.supervise: {supervise} does not fit")
    assert message.endswith(f"set it to {legal}")
