"""Conversations: supervised is what the assistant wrote, as transformers itself marks it."""

import copy

import pytest
from chat_templates import FAMILIES, LLAMA3, MISTRAL, SPECIAL, STRIPS_THINKING, marked, unmarked
from hypothesis import given, settings
from hypothesis import strategies as st

from gradacc_dist.data.formats import Encoder
from gradacc_dist.data.rows import Place
from gradacc_dist.data.shapes import shaped
from gradacc_dist.errors import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi there."}]
CONVERSATIONS = {
    "one turn": HELLO,
    "several turns": [*HELLO, {"role": "user", "content": "And?"}, {**HELLO[1], "content": "So."}],
    "system": [SYSTEM, *HELLO],
    "unicode": [{**HELLO[0], "content": "¿Qué? 日本"}, {**HELLO[1], "content": "naïve 🙂🧑‍🚀"}],
    "empty answer": [HELLO[0], {**HELLO[1], "content": ""}, *HELLO],
    "blanks": [{**HELLO[0], "content": " a \n"}, {**HELLO[1], "content": "\n\n b  "}, *HELLO],
    "ends with a question": [*HELLO, HELLO[0]],
}


@pytest.fixture(scope="module")
def tokenizer(embedded_tokenizer):
    chat = copy.deepcopy(embedded_tokenizer)
    chat.add_special_tokens({"additional_special_tokens": SPECIAL})
    return chat


def encode(tokenizer, template, row, supervise="auto"):
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = template
    rows = shaped(iter([(Place("chat.jsonl", 7), row)]))
    return Encoder(tokenizer, supervise).encode(rows)[0]


def transformers_own(tokenizer, template, messages):
    """(input_ids, labels) by transformers' assistant mask, which needs the markers."""
    found = tokenizer.apply_chat_template(
        messages, chat_template=marked(template), return_assistant_tokens_mask=True
    )
    pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
    return found["input_ids"], [token if mask else -100 for token, mask in pairs]


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_masks_equal_transformers_own(tokenizer, family, messages):
    template = FAMILIES[family]
    if family == "Llama 3":
        messages = [{**message, "content": message["content"].strip()} for message in messages]
    ids, labels = transformers_own(tokenizer, template, messages)
    assert any(label != -100 for label in labels)
    assert encode(tokenizer, marked(template), {"messages": messages}) == (ids, labels)
    assert encode(tokenizer, unmarked(template), {"messages": messages}) == (ids, labels)


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<[|"), max_size=12)
TURN = st.tuples(WORDS, WORDS).map(
    lambda pair: [
        {"role": "user", "content": pair[0]},
        {"role": "assistant", "content": pair[1].strip()},
    ]
)


@settings(max_examples=40)
@given(turns=st.lists(TURN, min_size=1, max_size=3), has_system=st.booleans())
@pytest.mark.parametrize("family", FAMILIES)
def test_masks_equal_transformers_own_for_any_text(tokenizer, family, turns, has_system):
    messages = [*([SYSTEM] if has_system else []), *(m for turn in turns for m in turn)]
    expected = transformers_own(tokenizer, FAMILIES[family], messages)
    assert encode(tokenizer, marked(FAMILIES[family]), {"messages": messages}) == expected
    assert encode(tokenizer, unmarked(FAMILIES[family]), {"messages": messages}) == expected


def supervised_text(tokenizer, encoded):
    return tokenizer.decode([label for label in encoded.labels if label != -100])


def test_a_character_of_several_tokens_is_supervised_whole(tokenizer):
    """transformers keeps only the first token of a mask's last character: half a character."""
    template = (
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}|{% endfor %}"
    )
    row = {"messages": [{"role": "assistant", "content": "ok 🧑"}]}
    assert supervised_text(tokenizer, encode(tokenizer, template, row)) == "ok 🧑"


@pytest.mark.parametrize("shown", [marked, unmarked])
@pytest.mark.parametrize("family", FAMILIES)
def test_supervise_chooses_the_turns(tokenizer, family, shown):
    template = shown(FAMILIES[family])
    messages = CONVERSATIONS["several turns"]
    row = {"messages": messages}

    def chosen(row, supervise):
        text = supervised_text(tokenizer, encode(tokenizer, template, row, supervise))
        return [message["content"] for message in messages if message["content"] in text]

    contents = [message["content"] for message in messages]
    assert chosen(row, "all") == contents
    assert chosen(row, "assistant") == chosen(row, "auto") == ["Hi there.", "So."]
    assert chosen(row, "completion") == ["So."]
    pair = {"prompt": messages[:3], "completion": messages[3:]}
    assert chosen(pair, "auto") == chosen(pair, "completion") == ["So."]
    assert chosen(pair, "assistant") == ["Hi there.", "So."]
    assert encode(tokenizer, template, pair, "assistant") == encode(tokenizer, template, row)


def test_nothing_is_added_to_what_the_template_writes(tokenizer):
    ids, labels = encode(tokenizer, unmarked(LLAMA3), {"messages": HELLO}, "all")
    assert tokenizer.decode(ids).startswith("<|begin_of_text|><|start_header_id|>user")
    assert tokenizer.decode(ids).endswith("Hi there.<|eot_id|>")
    assert labels == ids


def test_what_parquet_and_multimodal_datasets_write_reads_the_same(tokenizer):
    plain = encode(tokenizer, marked(LLAMA3), {"messages": HELLO})
    nulls = [{**message, "name": None, "tool_calls": None} for message in HELLO]
    assert encode(tokenizer, marked(LLAMA3), {"messages": nulls}) == plain
    parts = [
        {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in HELLO
    ]
    assert encode(tokenizer, marked(LLAMA3), {"messages": parts}) == plain


def test_tools_and_other_roles_are_the_templates_business(tokenizer):
    template = (
        "{{ tools | tojson if tools }}{% for m in messages %}{{ m['role'] + ':' }}"
        "{{ m['content'] if m['content'] is defined else m['tool_calls'] | tojson }};{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]}
    messages = [HELLO[0], call, {"role": "tool", "content": "noon"}, HELLO[1]]
    encoded = encode(tokenizer, template, {"messages": messages, "tools": [{"name": "clock"}]})
    assert tokenizer.decode(encoded.input_ids) == (
        '[{"name": "clock"}]user:Hello?;assistant:[{"name": "clock"}];tool:noon;'
        "assistant:Hi there.;"
    )
    assert supervised_text(tokenizer, encoded) == '[{"name": "clock"}];Hi there.;'


def test_without_an_end_mark_the_blanks_end_the_turn(tokenizer):
    template = unmarked(STRIPS_THINKING)
    row = {"messages": CONVERSATIONS["several turns"]}
    assert supervised_text(tokenizer, encode(tokenizer, template, row)) == " Hi there.\n So.\n"


THINKING = [{**HELLO[1], "content": "<think>greet</think>Hi."}]


@pytest.mark.parametrize(
    ("template", "row", "supervise", "fragments"),
    [
        (None, HELLO, "auto", ["the tokenizer has none", "set data.chat_template"]),
        ("{% if %}", HELLO, "auto", ["the chat template refuses", "Expected an expression"]),
        (
            STRIPS_THINKING,
            [HELLO[0], *THINKING, *HELLO],
            "auto",
            ["message 2 in another way", "{% generation %}", "data.supervise: all"],
        ),
        (unmarked(LLAMA3), THINKING, "auto", ["assistant speaks first", "{% generation %}"]),
        (
            MISTRAL.replace("<g>", "").replace("</g>", ""),
            [HELLO[0], HELLO[0]],
            "all",
            ["refuses these messages (roles must alternate user/assistant)"],
        ),
        (unmarked(LLAMA3), [*HELLO, HELLO[0]], "completion", ["must be the assistant's", "user"]),
    ],
)
def test_what_cannot_be_told_is_refused(tokenizer, template, row, supervise, fragments):
    with pytest.raises(DataError) as raised:
        encode(tokenizer, template, {"messages": row}, supervise)
    for fragment in ["chat.jsonl: row 7", *fragments]:
        assert fragment in str(raised.value)


def test_a_template_that_rewrites_earlier_turns_can_be_learned_whole(tokenizer):
    row = {"messages": [HELLO[0], *THINKING, *HELLO]}
    encoded = encode(tokenizer, STRIPS_THINKING, row, "all")
    assert encoded.labels == encoded.input_ids


def test_a_tokenizer_without_character_offsets_is_refused(tokenizer):
    slow = copy.copy(tokenizer)
    slow.chat_template = unmarked(LLAMA3)
    slow.__class__ = type("Slow", (type(slow),), {"is_fast": False})
    with pytest.raises(DataError, match="use a fast tokenizer"):
        Encoder(slow).encode(shaped(iter([(Place("a", 1), {"messages": HELLO})])))
