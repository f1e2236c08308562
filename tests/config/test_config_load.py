"""From YAML and flags to a Config: values mean what people mean, every value has its source."""

import subprocess
import sys
from pathlib import Path

import pytest

from gradacc_dist.config.fields import fields
from gradacc_dist.config.load import load
from gradacc_dist.config.resolved import leaves
from gradacc_dist.config.schema import Config, Share

SOUND = "model: {path: x}\n"


def config_of(tmp_path, text: str, *flags: str) -> Config:
    path = tmp_path / "run.yaml"
    path.write_text(SOUND + text)
    return load(path, flags, environ={}).config


@pytest.mark.parametrize(
    ("written", "field", "meant"),
    [
        ("window: {examples: '8'}", "window.examples", 8),
        ('window: {examples: "8"}', "window.examples", 8),
        ("window: {examples: 64.0}", "window.examples", 64),
        ("window: {examples: 1e3}", "window.examples", 1000),
        ("window: {examples: 1_000}", "window.examples", 1000),
        ("window: {examples: 010}", "window.examples", 10),
        ("optimizer: {learning_rate: 5e-5}", "optimizer.learning_rate", 5e-5),
        ("optimizer: {learning_rate: '5e-5'}", "optimizer.learning_rate", 5e-5),
        ("optimizer: {learning_rate: .5}", "optimizer.learning_rate", 0.5),
        ("optimizer: {learning_rate: 1}", "optimizer.learning_rate", 1.0),
        ("optimizer: {max_grad_norm: null}", "optimizer.max_grad_norm", None),
        ("optimizer: {max_grad_norm: ~}", "optimizer.max_grad_norm", None),
        ("optimizer: {betas: ['0.9', 99e-2]}", "optimizer.betas", (0.9, 0.99)),
        ("run: {overwrite: yes}", "run.overwrite", True),
        ("run: {overwrite: On}", "run.overwrite", True),
        ("checkpoint: {save_model: no}", "checkpoint.save_model", False),
        ("checkpoint: {save_model: off}", "checkpoint.save_model", False),
        ("checkpoint: {save_model: 'no'}", "checkpoint.save_model", False),
        ("track: {wandb: off}", "track.wandb", "off"),
        ("run: {output_dir: 2024-01-01}", "run.output_dir", Path("2024-01-01")),
        ("data: {train: no}", "data.train", "no"),
        ("data: {train: 0123}", "data.train", "0123"),
        ("data: {train: 'null'}", "data.train", "null"),
        ("data: {evaluate: null}", "data.evaluate", None),
        (
            "data:\n  train:\n    - path: 010\n      weight: 2.5\n    - {path: no}",
            "data.train",
            (Share(path="010", weight=2.5), Share(path="no", weight=1.0)),
        ),
        ("engine:", "engine.name", "auto"),
        ("data: &d {train: a}\nevaluate: {}", "data.train", "a"),
    ],
)
def test_values_mean_what_people_mean(written, field, meant, tmp_path):
    """C1: PyYAML reads 5e-5 as text, 010 as 8 and a folder named by a day as a date."""
    section, name = field.split(".")
    value = getattr(getattr(config_of(tmp_path, written), section), name)
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-5", 1e-5),
        ("'1e-5'", "1e-5"),
        ("8", 8),
        ("64.0", 64.0),
        ("no", False),
        ("'no'", "no"),
        ("null", None),
        ("-.inf", float("-inf")),
        ("silu", "silu"),
        ("{type: linear, factor: 2.0}", {"type": "linear", "factor": 2.0}),
        ("{0: a, yes: b}", {0: "a", True: "b"}),
        ("[1, [x, 2e0]]", [1, ["x", 2.0]]),
        ("2024-01-01", "2024-01-01"),
    ],
)
def test_inside_model_config_the_look_of_a_value_decides(written, meant, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"model:\n  tokenizer: t\n  config:\n    model_type: llama\n    x: {written}\n")
    config = load(path, (), environ={}).config.model.config
    assert config == {"model_type": "llama", "x": meant}
    assert type(config["x"]) is type(meant)


def test_every_leaf_has_a_source(tmp_path):
    """C2: default, line of the file, or flag; a flag wins."""
    path = tmp_path / "run.yaml"
    path.write_text(
        "model:\n  tokenizer: t\n  config:\n    model_type: llama\n    rope: {a: 1, b: 2}\n"
        "window:\n  examples: 16\noptimizer:\n  betas:\n    - 0.9\n    - 0.99\n"
    )
    flags = ["--window.examples=32", "--model.config.rope.b", "3", "--model.config.new", "[1]"]
    resolved = load(path, flags, environ={})

    assert resolved.config.window.examples == 32
    assert resolved.config.model.config == {
        "model_type": "llama",
        "rope": {"a": 1, "b": 3},
        "new": [1],
    }
    assert list(resolved.sources) == [leaf for leaf, _ in leaves(resolved.config)]
    set_by_someone = {leaf: at for leaf, at in resolved.sources.items() if at != "default"}
    assert set_by_someone == {
        "model.tokenizer": f"{path}:2",
        "model.config.model_type": f"{path}:4",
        "model.config.rope.a": f"{path}:5",
        "model.config.rope.b": "--model.config.rope.b",
        "model.config.new": "--model.config.new",
        "window.examples": "--window.examples",
        "optimizer.betas": f"{path}:10",
    }
    assert resolved.source("model.config") == f"{path}:4"


def test_an_empty_file_means_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("# nothing\n")
    expected = Config.model_validate({"model": {"path": "x"}})
    assert load(path, ["--model.path", "x"], environ={}).config == expected


def test_without_a_file_the_packaged_demo_is_read():
    resolved = load(None, (), environ={})
    assert resolved.config.data.train == "embedded"
    assert resolved.source("model.config").startswith("gradacc_dist/config/demo.yaml:")


def test_a_flag_turns_the_demo_to_pretrained_weights():
    flags = ["--model.path", "gpt2", "--model.config", "null", "--model.tokenizer", "null"]
    model = load(None, flags, environ={}).config.model
    assert (model.path, model.config, model.tokenizer) == ("gpt2", None, None)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: {path: x}")
    assert load(path, (), environ={}).config.model.path == "x"


def test_every_field_of_the_schema_is_described():
    for field in fields().values():
        assert field.sentence.endswith("."), field.path
        assert field.needs(), field.path


def test_neither_torch_nor_numpy_is_imported():
    """C3: --help and --check answer at once."""
    code = (
        "import sys; from gradacc_dist.config import help, load, present;"
        "help.help_text('p', 'q'); present.table(load.load(None, []));"
        "print(sorted({'torch', 'numpy', 'rich', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
