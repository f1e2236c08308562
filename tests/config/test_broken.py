"""A corpus of broken configurations: each names its place and the remedy (C1, C2, C3)."""

from pathlib import Path

import pytest

from gradacc_dist.config.load import load
from gradacc_dist.errors import ConfigError

SOUND = "model: {path: x}\n"  # line 1 of every file, so that what is broken starts at line 2

# name: (text after line 1, line of the mistake, what the message says after the place)
BROKEN = {
    "key: typo": (
        "window:\n  exmaples: 64",
        "3",
        "window.exmaples: unknown key; did you mean window.examples?",
    ),
    "key: of other sections": (
        "run:\n  examples: 3",
        "3",
        "did you mean window.examples, micro_batch.examples or evaluate.examples?",
    ),
    "key: of one other section": (
        "run:\n  max_length: 3",
        "3",
        "run.max_length: unknown key; write data.max_length: 3",
    ),
    "key: hyphens": (
        "data: {max-length: 3}",
        "2",
        "data.max-length: unknown key; did you mean data.max_length?",
    ),
    "key: like nothing": (
        "window: {zzz: 3}",
        "2",
        "window.zzz: unknown key; the fields of window are examples, supervised_tokens, on_zero",
    ),
    "key: twice": (
        "data:\n  train: a\n  train: b",
        "4",
        "data.train: given twice, first at {file}:3; keep one",
    ),
    "key: a list": ("data: {[a]: b}", "2", "a key must be one word"),
    "key: merge": (
        "data: &d {train: a}\nwindow:\n  <<: *d",
        "4",
        "window.<<: merge keys are not read; write the fields out",
    ),
    "section: typo": ("optimiser: {name: sgd}", "2", "unknown section; did you mean optimizer?"),
    "section: like nothing": ("zzz: {a: 1}", "2", "zzz: unknown section; the sections are run,"),
    "section: twice": ("data: {}\nrun: {}\ndata: {}", "4", "data: given twice, first at {file}:2"),
    "section: a number": (
        "window: 64",
        "2",
        "window: got 64; this is a section, and below it come its fields: examples,",
    ),
    "section: a list": ("window: [64]", "2", "window: got [64]; this is a section"),
    "section: left out": (
        "learning_rate: 5e-5",
        "2",
        "learning_rate: unknown key; write optimizer.learning_rate: 5e-05",
    ),
    "section: left out and typo": (
        "learning_rat: 5e-5",
        "2",
        "unknown key; did you mean optimizer.learning_rate?",
    ),
    "section: with a dot": (
        "window.examples: 8",
        "2",
        "a name with a dot is two levels in a file; write window: {examples: 8}",
    ),
    "section: foreign, field inside": (
        "training:\n  weight_decay: 0.1",
        "3",
        "training.weight_decay: unknown key; write optimizer.weight_decay: 0.1",
    ),
    "section: known, foreign block inside": (
        "optimizer:\n  params:\n    lr: 1e-4",
        "4",
        "optimizer.params.lr: unknown key; write optimizer.learning_rate: 0.0001",
    ),
    "integer: a word": (
        "micro_batch:\n  examples: many",
        "3",
        'micro_batch.examples: got "many"; needs an integer > 0 (Most examples in one forward',
    ),
    "integer: true": ("window: {examples: true}", "2", 'got "true"; needs an integer > 0'),
    "integer: zero": ("window: {examples: 0}", "2", "got 0; needs an integer > 0"),
    "integer: negative": ("run: {seed: -1}", "2", "run.seed: got -1; needs an integer >= 0"),
    "integer: a fraction": ("schedule: {steps: 1.5}", "2", 'got "1.5"; needs an integer > 0'),
    "integer: endless": ("schedule: {steps: .inf}", "2", 'got ".inf"; needs an integer > 0'),
    "integer: empty": ("micro_batch:\n  examples:", "3", "got nothing (null); needs an integer"),
    "integer: a list": ("window: {examples: [1]}", "2", "got [1]; needs an integer > 0"),
    "integer or null: a word": (
        "evaluate: {every_steps: never}",
        "2",
        'got "never"; needs an integer > 0, or null',
    ),
    "number: a word": ("optimizer: {eps: tiny}", "2", 'got "tiny"; needs a number > 0'),
    "number: out of range": (
        "schedule: {final_fraction: 2}",
        "2",
        "got 2; needs a number >= 0 and <= 1",
    ),
    "number: infinite": ("optimizer: {learning_rate: 1e999}", "2", "needs a number >= 0"),
    "number: nan": ("optimizer: {learning_rate: nan}", "2", 'got "nan"; needs a number >= 0'),
    "boolean: a word": ("run: {overwrite: maybe}", "2", 'got "maybe"; needs true or false'),
    "boolean: a number": ("run: {overwrite: 2}", "2", 'got "2"; needs true or false'),
    "choice: typo": (
        "optimizer: {name: adam}",
        "2",
        'got "adam"; needs one of adamw, sgd; did you mean adamw? (Kind of optimizer)',
    ),
    "choice: like nothing": (
        "schedule: {shape: zzz}",
        "2",
        'got "zzz"; needs one of constant, linear, cosine, warmup_stable_decay (Shape',
    ),
    "choice: a mapping": ("optimizer: {name: {a: 1}}", "2", 'got {"a": 1}; needs one of adamw'),
    "list: too long": (
        "optimizer:\n  betas: [0.9, 0.95, 0.99]",
        "3",
        "got [0.9, 0.95, 0.99]; needs a list of 2 [...], each a number >= 0 and < 1",
    ),
    "list: one out of range": ("optimizer: {betas: [0.9, 1]}", "2", "got [0.9, 1]; needs a list"),
    "list: a number": ("optimizer: {betas: 0.9}", "2", 'got "0.9"; needs a list of 2'),
    "text: a list": ("data: {train: [a, b]}", "2", 'got ["a", "b"]; needs text'),
    "mixture: an unknown key": (
        "data:\n  train: [{path: a, wieght: 2}]",
        "3",
        "needs text, or a list [...], each a mapping {path: ..., weight: ...}",
    ),
    "mixture: no path": ("data: {train: [{weight: 2}]}", "2", "each a mapping {path: ..., weight"),
    "mixture: no weight": ("data: {train: [{path: a, weight: 0}]}", "2", '"weight": 0}]; needs'),
    "mixture: empty": ("data: {train: []}", "2", "got []; needs text, or a list"),
    "text: empty": ("data:\n  train:", "3", "data.train: got nothing (null); needs text"),
    "path: a mapping": ("run: {output_dir: {a: b}}", "2", "needs a path"),
    "tag": ("window: {examples: !!python/object:os.system 8}", "2", "is not read; remove it"),
    "tag: standard": ("window: {examples: !!str 8}", "2", "the tag !!str is not read; remove it"),
    "yaml: tab": ("window:\n\texamples: 3", "3:1", "not YAML:"),
    "yaml: not closed": ("window: {examples: 3\nrun: {}", "3:4", "look at indentation"),
    "yaml: indentation": ("window:\n   examples: 3\n  on_zero_items: skip", "4:3", "not YAML:"),
    "yaml: at sign": ("run: {output_dir: @home}", "2:19", "colons and quotes here"),
    "yaml: unknown alias": ("window: *other", "2:9", "found undefined alias"),
    "yaml: alias in itself": ("data: &d\n  train: *d", "2", "write the value out"),
    "yaml: two documents": ("---\nrun: {}", "2:1", "found another document"),
    "yaml: control character": ("run: \x01", "2", "the character with code 1 is not allowed"),
    "rule: warm-up": (
        "schedule:\n  steps: 10\n  warmup_steps: 11",
        "4",
        "11 ({file}:4) exceeds schedule.steps: 10 ({file}:3); lower warmup_steps to at most 10",
    ),
}


def mistakes(path: Path, *flags: str) -> list[str]:
    """The lines of the error, less the last one, which counts them."""
    with pytest.raises(ConfigError) as caught:
        load(path, flags, environ={})
    *lines, count = str(caught.value).splitlines()
    noun = "mistake" if len(lines) == 1 else "mistakes"
    assert count.startswith(f"{len(lines)} {noun} in the configuration; --help lists")
    assert caught.value.exit_code == 10
    return lines


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_config_names_its_place_and_the_remedy(name, tmp_path):
    text, line, message = BROKEN[name]
    path = tmp_path / "run.yaml"
    path.write_text(SOUND + text)

    found = mistakes(path)

    expected = message.replace("{file}", str(path))
    right = [told for told in found if told.startswith(f"{path}:{line}: ") and expected in told]
    assert len(right) == 1, found
    # What is foreign or misspelled may hold more names to put right; else one mistake, one line.
    assert len(found) == 1 or "inside" in name, found
    assert not any("pydantic" in told or "Traceback" in told for told in found)


def test_the_corpus_is_large_enough():
    assert len(BROKEN) >= 40


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path):
    sound_elsewhere = [name for name in BROKEN if name.startswith(("integer", "number", "choice"))]
    lines = ["model:", "  path: x"]
    for name in sound_elsewhere:
        section, _, rest = BROKEN[name][0].partition(":")
        field, _, value = rest.strip(" \n{}").partition(":")
        if f"{section}:" not in lines:  # one mistake per section: keys may not repeat
            lines += [f"{section}:", f"  {field}: {value}"]
    path = tmp_path / "run.yaml"
    path.write_text("\n".join(lines))

    found = mistakes(path, "--nonsense", "--window.examples", "few")

    in_file = [int(line.split(":")[1]) for line in found if line.startswith(str(path))]
    assert in_file == sorted(in_file)
    assert len(in_file) >= 4
    assert [line.split(":")[0] for line in found[len(in_file) :]] == [
        "--nonsense",
        "--window.examples",
    ]


def test_a_mistake_is_not_followed_by_those_it_causes(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("modle: {path: x}\nschedule: {steps: many, warmup_steps: 5}\n")

    found = mistakes(path)

    assert [line.split(": ")[1] for line in found] == ["modle", "schedule.steps"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file (looked in "),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b"run: \xff"), "is not UTF-8 text: byte 5 is 0xff"),
        (lambda path: path.write_text("- a"), "1: a configuration is made of sections (run,"),
        (lambda path: path.write_text("hello"), "1: a configuration is made of sections (run,"),
    ],
    ids=["missing", "folder", "bytes", "list", "word"],
)
def test_a_file_that_is_no_configuration(make, message, tmp_path):
    path = tmp_path / "run.yaml"
    make(path)

    found = mistakes(path, "--window.examples", "0")  # and the flags are judged all the same

    assert found[0].startswith(f"{path}:")
    assert message in found[0]
    assert found[1].startswith("--window.examples: got 0; needs an integer > 0")
    assert len(found) == 2
