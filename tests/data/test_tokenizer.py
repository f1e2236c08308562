from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from gradacc_dist.data import corpus, tokenizer
from gradacc_dist.errors import DataError

ROOT = Path(__file__).parents[2]
SENTENCE = "def f(x):\n    return x  # naïve"


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train on two short rows; gives the list of splits that were asked for."""
    asked: list[str] = []

    def rows(split: str) -> list[dict[str, str]]:
        asked.append(split)
        return [{"prompt": "def f(): pass", "completion": "Do nothing."}, {"text": "del"}]

    monkeypatch.setattr(corpus, "rows", rows)
    return asked


def _save_copy(source: PreTrainedTokenizerFast, folder: Path, **settings: Any) -> Path:
    """Save the same vocabulary with other special tokens."""
    PreTrainedTokenizerFast(
        tokenizer_object=source.backend_tokenizer,
        **{"eos_token": tokenizer.END_TOKEN, **settings},
    ).save_pretrained(folder)
    return folder


def _refuse_to_train() -> None:
    raise AssertionError("trained again")


def test_embedded_has_the_promised_vocabulary(embedded_tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(embedded_tokenizer) == tokenizer.VOCABULARY_SIZE == 4096
    assert embedded_tokenizer.eos_token == "<|endoftext|>"
    assert embedded_tokenizer.pad_token == "<|pad|>"
    assert embedded_tokenizer.bos_token is None


def test_embedded_shortens_what_it_was_trained_on(
    embedded_tokenizer: PreTrainedTokenizerFast, embedded_corpus: corpus.Corpus
) -> None:
    texts = [row["completion"] for row in embedded_corpus.evaluate]
    num_tokens = sum(len(ids) for ids in embedded_tokenizer(texts).input_ids)
    assert sum(len(text.encode()) for text in texts) > 3 * num_tokens


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE,
        "",
        " ",
        "  two  spaces , and a dot . n't\n\n\ttab\r\nend ",
        "日本語 العربية हिन्दी Ελληνικά",
        "e\u0301 \u00e9 👩‍👩‍👧 \U0010ffff \ufeff \u200b \u2028",
        "".join(map(chr, range(0x800))),
    ],
)
def test_decoding_gives_the_text_back(
    embedded_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    ids = embedded_tokenizer(text).input_ids
    assert embedded_tokenizer.decode(ids) == text
    assert not set(ids) & set(embedded_tokenizer.all_special_ids)


def test_training_twice_gives_the_same_bytes(
    embedded_tokenizer: PreTrainedTokenizerFast, embedded_cache: Path, tmp_path: Path
) -> None:
    tokenizer._train().save_pretrained(tmp_path)
    (kept,) = (path for path in (embedded_cache / "tokenizers").iterdir() if path.is_dir())
    names = sorted(path.name for path in kept.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert [(kept / n).read_bytes() for n in names] == [(tmp_path / n).read_bytes() for n in names]


def test_training_reads_the_training_split_only(tmp_path: Path, few_rows: list[str]) -> None:
    tokenizer.load("embedded", tmp_path)
    assert few_rows == ["train"]


def test_a_kept_tokenizer_is_not_trained_again(
    embedded_tokenizer: PreTrainedTokenizerFast,
    embedded_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer, "_train", _refuse_to_train)
    again = tokenizer.load("embedded", embedded_cache)
    assert tokenizer.fingerprint(again) == tokenizer.fingerprint(embedded_tokenizer)
    with pytest.raises(AssertionError, match="trained again"):
        tokenizer.load("embedded", tmp_path)


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (corpus, "fingerprint", lambda: "another Python"),
        (tokenizer, "VOCABULARY_SIZE", 300),
        (tokenizer, "FORMAT_VERSION", 0),
        (tokenizer.tokenizers, "__version__", "0"),
    ],
)
def test_what_training_depends_on_is_in_the_key(
    tmp_path: Path,
    few_rows: list[str],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    value: Any,
) -> None:
    tokenizer.load("embedded", tmp_path)
    monkeypatch.setattr(module, name, value)
    tokenizer.load("embedded", tmp_path)
    assert len(few_rows) == 2


def test_a_failed_training_leaves_nothing(
    tmp_path: Path, few_rows: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "_train", _refuse_to_train)
        with pytest.raises(AssertionError, match="trained again"):
            tokenizer.load("embedded", tmp_path)
    assert not [path for path in (tmp_path / "tokenizers").iterdir() if path.is_dir()]
    assert tokenizer.load("embedded", tmp_path).eos_token == tokenizer.END_TOKEN


CHILD = """
import sys, time
from pathlib import Path
from gradacc_dist.data import corpus, tokenizer

train = tokenizer._train

def train_slowly():
    with Path(sys.argv[1], "trained").open("a") as file:
        file.write("once\\n")
    time.sleep(1)
    return train()

tokenizer._train = train_slowly
corpus.rows = lambda split: [{"text": "a few words of text"}]
print("ready", flush=True)
sys.stdin.readline()
print(tokenizer.fingerprint(tokenizer.load("embedded", Path(sys.argv[1]))))
"""


def test_two_processes_at_once_train_once(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        print("go", file=child.stdin, flush=True)
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert outputs[0] == outputs[1] != ""
    assert (tmp_path / "trained").read_text() == "once\n"
    (folder,) = (path for path in (tmp_path / "tokenizers").iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_another_machine_may_finish_first(
    tmp_path: Path, few_rows: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that holds on one machine only: the folder appears while this process trains."""
    rename = Path.rename

    def rename_second(self: Path, target: Path) -> Path:
        _save_copy(tokenizer._train(), target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_second)
    assert tokenizer.load("embedded", tmp_path).pad_token is None, "the other machine's was kept"


def test_a_damaged_cache_names_the_folder_to_delete(tmp_path: Path, few_rows: list[str]) -> None:
    tokenizer.load("embedded", tmp_path)
    (file,) = (tmp_path / "tokenizers").glob("*/tokenizer.json")
    file.write_text("{")
    with pytest.raises(DataError, match="delete that folder") as caught:
        tokenizer.load("embedded", tmp_path)
    assert str(file.parent) in str(caught.value)


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"set data\.cache_dir to a folder"):
        tokenizer.load("embedded", tmp_path / "file")


def test_a_missing_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(DataError) as caught:
        tokenizer.load(missing, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"tokenizer {missing!r}: no such folder here")
    assert message.endswith("or `embedded`")
    assert "\n" not in message


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this folder holds no tokenizer"):
        tokenizer.load(str(tmp_path), tmp_path)


def test_an_invented_empty_vocabulary_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(DataError, match="nothing but 1 special tokens"):
        tokenizer.load(str(tmp_path), tmp_path)


def test_code_in_a_folder_is_not_run(
    embedded_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    embedded_tokenizer.save_pretrained(tmp_path)
    marker = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="this folder holds no tokenizer"):
        tokenizer.load(str(tmp_path), tmp_path)
    assert not marker.exists()


def test_a_tokenizer_needs_an_end_and_no_padding(
    embedded_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    endless = _save_copy(embedded_tokenizer, tmp_path / "endless", eos_token=None)
    with pytest.raises(DataError, match=r"no end-of-text token \(eos_token\)"):
        tokenizer.load(str(endless), tmp_path)
    unpadded = _save_copy(embedded_tokenizer, tmp_path / "unpadded")
    assert tokenizer.load(str(unpadded), tmp_path).pad_token is None


def test_the_fingerprint_is_of_the_tokenizer_not_of_its_place_or_use(
    embedded_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before = tokenizer.fingerprint(embedded_tokenizer)
    assert len(before) == 64
    for place in ("a", "b"):
        embedded_tokenizer.save_pretrained(tmp_path / place)
        copy = tokenizer.load(str(tmp_path / place), tmp_path)
        assert tokenizer.fingerprint(copy) == before
    copy([SENTENCE, "x"], truncation=True, max_length=3, padding=True)
    assert copy.backend_tokenizer.truncation is not None
    assert tokenizer.fingerprint(copy) == before


def test_the_fingerprint_follows_what_changes_the_output(
    embedded_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def copy(**settings: Any) -> PreTrainedTokenizerFast:
        folder = _save_copy(embedded_tokenizer, tmp_path / str(len(seen)), **settings)
        return tokenizer.load(str(folder), tmp_path)

    seen = [tokenizer.fingerprint(embedded_tokenizer)]
    seen.append(tokenizer.fingerprint(copy()))
    seen.append(tokenizer.fingerprint(copy(eos_token=tokenizer.PAD_TOKEN)))
    templated = copy()
    templated.chat_template = "{{ messages }}"
    seen.append(tokenizer.fingerprint(templated))
    extended = copy()
    extended.add_tokens(["naïve"])
    seen.append(tokenizer.fingerprint(extended))
    assert len(set(seen)) == len(seen)


def test_the_fingerprint_of_a_tokenizer_written_in_python(tmp_path: Path) -> None:
    plain = ByT5Tokenizer()
    others = [ByT5Tokenizer(extra_ids=3), ByT5Tokenizer(clean_up_tokenization_spaces=True)]
    assert len({tokenizer.fingerprint(each) for each in (plain, *others)}) == 3
    for place in ("a", "b"):
        plain.save_pretrained(tmp_path / place)
        copy = tokenizer.load(str(tmp_path / place), tmp_path)
        assert not copy.is_fast
        assert tokenizer.fingerprint(copy) == tokenizer.fingerprint(plain)
