"""Formats: the shape of a row decides what is supervised."""

import pytest

from gradacc_dist.data.formats import Encoder, Segment, segments
from gradacc_dist.errors import DataError


class Letters:
    """A tokenizer that makes a token of each letter; bos 1, eos 2."""

    eos_token_id = 2

    def __init__(self, bos: int | None = None) -> None:
        self.bos_token_id = bos

    def __call__(self, texts, add_special_tokens=True):
        prefix = [self.bos_token_id] if self.bos_token_id and add_special_tokens else []
        if isinstance(texts, str):
            return {"input_ids": prefix + [ord(letter) for letter in texts]}
        return {"input_ids": [prefix + [ord(letter) for letter in text] for text in texts]}


def encode(row: dict, bos: int | None = None) -> tuple[list[int], list[int]]:
    return Encoder(Letters(bos)).encode([segments(row, "here")])[0]


def test_text_is_supervised_whole_and_ends():
    assert encode({"text": "ab"}) == ([97, 98, 2], [97, 98, 2])


def test_only_the_completion_and_its_end_are_supervised():
    assert encode({"prompt": "ab", "completion": "c"}) == ([97, 98, 99, 2], [-100, -100, 99, 2])


def test_a_tokenizer_that_begins_with_bos_still_does_once():
    row = {"prompt": "a", "completion": "b"}
    assert encode(row, bos=1) == ([1, 97, 98, 2], [-100, -100, 98, 2])


def test_other_columns_are_carried_along_unread():
    assert segments({"text": "a", "id": 3}, "here") == [Segment("a", supervised=True)]


@pytest.mark.parametrize(
    ("row", "fragments"),
    [
        ({"txt": "a"}, ["rows.jsonl: row 3", "columns are txt", "prompt, completion"]),
        ({}, ["columns are none"]),
        ({"prompt": "a"}, ["columns are prompt", "text (every token"]),
        ({"text": None}, ["text is null, but must be a string"]),
        ({"prompt": "a", "completion": ["b"]}, ["completion is list", "must be a string"]),
        ({"text": 5}, ["text is int ('5')"]),
    ],
)
def test_c6_a_row_of_another_shape_names_place_columns_and_shapes(row, fragments):
    with pytest.raises(DataError) as raised:
        segments(row, "rows.jsonl: row 3")
    for fragment in ["rows.jsonl: row 3", *fragments]:
        assert fragment in str(raised.value)
