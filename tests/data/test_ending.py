"""Whether an example teaches the model to stop."""

import pytest

from gradacc_dist.data.ending import Ending


@pytest.mark.parametrize(
    ("tail", "is_in"),
    [
        (["<eos>"], True),
        (["<eos>", "\n", " "], True),
        (["<eos>", None, None], True),
        (["<eos>", "yes"], False),
        (["\n"], False),
        ([None], False),
    ],
)
def test_only_blanks_may_follow_the_last_end(embedded_tokenizer, tail, is_in):
    def label(text):
        if text is None:
            return -100
        return embedded_tokenizer(text.replace("<eos>", "<|endoftext|>"))["input_ids"][0]

    assert Ending(embedded_tokenizer).is_in([-100, 70, *map(label, tail)]) is is_in


def test_the_first_label_is_no_item(embedded_tokenizer):
    assert not Ending(embedded_tokenizer).is_in([embedded_tokenizer.eos_token_id])
    assert not Ending(embedded_tokenizer).is_in([])
