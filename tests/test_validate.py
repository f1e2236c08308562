"""`python -m gradacc_dist.validate`: what is planted in the data is counted and named."""

from __future__ import annotations

import io
import json
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from launching import run
from matplotlib.image import imread
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gradacc_dist.validate import main

EOS = 1
WORDS = [f"w{number}" for number in range(100)]
MAX_LENGTH = 10


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    def row(self, title: str, name: str) -> str:
        """What the table of this title says under this name; the lines of a cell joined."""
        table = self.out.split(title, 1)[1].split("\n\n")[0].splitlines()
        cell: list[str] = []
        for line in table[1:]:
            if line.startswith(f" {name}  ") or (cell and line.startswith("    ")):
                cell.append(line.removeprefix(f" {name}").strip())
            elif cell:
                break
        return "; ".join(cell)


def pair(prompt: int, completion: int, first: int) -> dict[str, str]:
    """A row of so many words, beginning at word `first`."""
    words = [WORDS[(first + n) % 100] for n in range(prompt + completion)]
    return {"prompt": " ".join(words[:prompt]), "completion": " ".join(words[prompt:])}


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A configuration whose tokenizer has a token for each word."""
    folder = tmp_path_factory.mktemp("validate")
    vocabulary = {name: number for number, name in enumerate(["<unk>", "<eos>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    config = {
        "model": {"tokenizer": str(folder / "tokenizer"), "config": {"model_type": "llama"}},
        "data": {"max_length": MAX_LENGTH, "cache_dir": str(folder / "cache")},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


def validate(folder: Path, output: Path, train, evaluate=None, **data: str) -> Outcome:
    """Run the entry point in this process, on a wide page without colour."""
    flags = {"run.output_dir": output, "data.train": train, "data.evaluate": evaluate}
    flags |= {f"data.{name}": value for name, value in data.items()}
    argv = ["--config", str(folder / "run.yaml")]
    for name, value in flags.items():
        if value is not None:
            argv += [f"--{name}", str(value)]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("COLUMNS", "250")
        code = main(argv)
    return Outcome(code, out.getvalue(), err.getvalue())


PAIRS = [
    pair(2, 3, 0),  # row 1: 6 tokens, 4 of them supervised
    pair(3, 9, 20),  # row 2: 13 tokens, 3 cut
    pair(2, 3, 0),  # row 3: repeats row 1
    pair(12, 2, 40),  # row 4: 15 tokens, 5 cut, and with them all items
    pair(1, 1, 60),
]
IDS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},  # row 1: no EOS
    {"input_ids": [5, 6, EOS], "labels": [5, 6, EOS]},
    {"input_ids": [8, 9], "labels": [-100, -100]},  # row 3: no items
    {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]},  # row 4: no EOS, repeats row 1
]
HELD_OUT = [pair(1, 1, 80), pair(1, 1, 60), pair(1, 1, 80)]  # row 2 is train's row 5


@pytest.fixture(scope="module")
def planted(folder) -> Outcome:
    write(folder / "train" / "a.jsonl", PAIRS)
    write(folder / "train" / "b.jsonl", IDS)
    (folder / "train" / "notes.md").write_text("not data")
    write(folder / "held_out.jsonl", HELD_OUT)
    output = folder / "run"
    output.mkdir()
    (output / "ledger.jsonl").write_text("an earlier run\n")
    return validate(folder, output, folder / "train", folder / "held_out.jsonl")


def test_sizes_are_counted(planted):
    lengths = sorted([6, 10, 6, 10, 3, 3, 3, 2, 3])
    items = sorted([4, 7, 4, 0, 2, 2, 2, 0, 1])
    title = "data.train: "
    assert planted.row(title, "rows") == "9 (5 of prompt, completion; 4 of input_ids, labels)"
    assert planted.row(title, "input tokens") == str(sum(lengths))
    fraction = f"{sum(items) / sum(lengths):.1%}"
    assert planted.row(title, "supervised") == f"{sum(items)} tokens, {fraction}"
    assert planted.row(title, "length") == "median 3, 90% 10, 99% 10, longest 10"
    assert planted.row(title, "supervised each") == "median 2, 90% 7, 99% 7, longest 7"
    assert planted.row("data.evaluate: ", "rows") == "3 (3 of prompt, completion)"


def test_c7_what_is_odd_is_counted_and_named(planted, folder):
    a, b, title = folder / "train" / "a.jsonl", folder / "train" / "b.jsonl", "data.train: "
    assert planted.row(title, "truncated") == (
        f"2 rows lost 8 tokens to data.max_length {MAX_LENGTH}: {a}: rows 2, 4"
    )
    assert planted.row(title, "no supervision") == (
        "2 rows without a supervised token, 1 of them because they were truncated: "
        f"{a}: row 4; {b}: row 3"
    )
    assert planted.row(title, "missing EOS") == (
        "2 rows whose supervised part does not end with <eos>, truncated ones aside: "
        f"{b}: rows 1, 4"
    )
    assert planted.row(title, "not read").endswith(
        f"1 file(s) of other kinds: {folder}/train/notes.md"
    )
    for name in ["truncated", "no supervision", "missing EOS", "not read"]:
        assert planted.row("data.evaluate: ", name) == "none"


def test_equal_examples_are_counted_and_named_on_both_sides(planted, folder):
    a, b, held_out = (
        folder / name for name in ("train/a.jsonl", "train/b.jsonl", "held_out.jsonl")
    )
    title = "Equal examples"
    assert planted.row(title, "in data.train") == (
        f"2 of 9 rows; {a}: row 3 repeats {a}: row 1; {b}: row 4 repeats {b}: row 1"
    )
    assert planted.row(title, "in data.evaluate") == (
        f"1 of 3 rows; {held_out}: row 3 repeats {held_out}: row 1"
    )
    assert planted.row(title, "in both") == f"1 of 3 rows; {held_out}: row 2 is also {a}: row 5"


def test_three_samples_show_what_is_supervised(planted, folder):
    titles = re.findall(
        r"^Sample, (.*): (\d+) tokens, (\d+) of them supervised$", planted.out, re.M
    )
    assert [(int(length), int(items)) for _, length, items in titles] == [(2, 0), (3, 1), (10, 0)]
    assert titles[0][0] == f"{folder}/train/b.jsonl: row 3"
    assert "\nw3 w4⟦w5⟧\n" in planted.out


def test_c7_rows_without_items_are_an_error_after_the_whole_report(planted, folder):
    assert planted.code == 11
    (line,) = planted.err.splitlines()
    assert line.startswith("DataError: ")
    assert "2 of 9 rows hold no supervised token" in line
    assert "data.on_zero_items: keep" in line
    assert "Traceback" not in planted.out
    assert "would accept" not in planted.out


def test_the_figure_is_drawn_and_an_earlier_run_left_alone(planted, folder):
    output = folder / "run"
    assert sorted(path.name for path in output.iterdir()) == ["ledger.jsonl", "validate.png"]
    assert (output / "ledger.jsonl").read_text() == "an earlier run\n"
    pixels = imread(output / "validate.png")[..., :3]
    assert pixels.shape == (600, 900, 3)
    assert ((pixels[..., 2] > pixels[..., 0] + 0.2).mean()) > 0.01


def test_rows_without_items_may_be_allowed(planted, folder):
    done = validate(folder, folder / "kept", folder / "train", on_zero_items="keep")
    assert (done.code, done.err) == (0, "")
    assert "2 rows without a supervised token" in done.row("data.train: ", "no supervision")
    assert "Training would accept this data." in done.out
    assert "in both" not in done.out


def test_all_problems_are_told_and_what_can_be_read_is_shown(folder):
    broken = write(folder / "broken.jsonl", [{"text": "w1"}, {"text": 5}])
    good = write(folder / "good.jsonl", PAIRS[:1])
    mute = write(folder / "mute.jsonl", IDS[2:3])
    sources = [{"path": str(path)} for path in (broken, good, mute)]
    sources.append({"path": str(good), "weight": 0.1})
    done = validate(folder, folder / "x", json.dumps(sources), folder / "none.jsonl")
    assert done.code == 11
    first, *problems = done.err.splitlines()
    assert first == "DataError: 4 problems"
    for problem, words in zip(
        problems,
        [
            f"{broken}: row 2: text is int",
            f"{mute}: 1 of 1 rows hold no supervised token",
            "weight 0.1 of 1 rows",
            "none.jsonl: cannot be read",
        ],
        strict=True,
    ):
        assert words in problem
    assert done.row(f"data.train: {good}", "rows").startswith("1 (1 of prompt, completion)")
    assert f"{good}: row 1 repeats {good}: row 1" in done.row("Equal examples", "in data.train")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (No such file"),
        ("", "no rows"),
        ('{"text": "w1"}\n{"text"\n', "row 2: not JSON"),
        ('{"label": 3}\n', "row 1: its columns are label"),
    ],
)
def test_bad_data_is_one_line(folder, content, words):
    path = folder / "bad.jsonl"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    done = validate(folder, folder / "bad", path)
    assert done.code == 11
    (line,) = done.err.splitlines()
    assert line.startswith(f"DataError: {path}: ")
    assert words in line
    assert not (folder / "bad").exists()


def test_as_users_start_it(folder, planted):
    command = ["-m", "gradacc_dist.validate", "--config", str(folder / "run.yaml")]
    path = str(write(folder / "fine.jsonl", PAIRS[:1]))
    flags = ["--data.train", path, "--run.output_dir", str(folder / "fine")]
    done = run([sys.executable, *command, *flags])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "w0 w1⟦w2 w3 w4 <eos>⟧" in done.stdout
