"""The command line: nothing raises while it is taken apart, and `load` reports the rest."""

from pathlib import Path

import pytest

from gradacc_dist.config.flags import CommandLine, Flag, parse_command_line, split
from gradacc_dist.config.load import load
from gradacc_dist.config.schema import Share
from gradacc_dist.errors import ConfigError


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], CommandLine(None, (), check=False, help=False)),
        (["--config", "a.yaml"], CommandLine(Path("a.yaml"), (), check=False, help=False)),
        (["--config=a.yaml"], CommandLine(Path("a.yaml"), (), check=False, help=False)),
        (["--check"], CommandLine(None, (), check=True, help=False)),
        (["-h"], CommandLine(None, (), check=False, help=True)),
        (["--window.examples", "--help"], CommandLine(None, ("--window.examples",), False, True)),
        (["--run.overwrite", "-h"], CommandLine(None, ("--run.overwrite",), False, True)),
        (["--run.seed", "-1"], CommandLine(None, ("--run.seed=-1",), False, False)),
        (["--check", "a.yaml"], CommandLine(None, ("a.yaml",), True, False)),
        (["--config"], CommandLine(None, ("--config",), False, False)),
        (["--config", "a", "--config", "b"], CommandLine(Path("a"), ("--config=b",), False, False)),
    ],
)
def test_command_lines(argv, expected):
    assert parse_command_line(argv) == expected


@pytest.mark.parametrize("flag", [["--local_rank=1"], ["--local-rank=1"], ["--local_rank", "1"]])
def test_the_deepspeed_launcher_says_the_local_rank_twice(flag):
    """Launched by `deepspeed`, whose launcher/launch.py adds the flag that its variable repeats."""
    argv = [*flag, "--run.seed", "1"]
    assert parse_command_line(argv, {"LOCAL_RANK": "1"}).flags == ("--run.seed=1",)
    for environ in ({}, {"LOCAL_RANK": "0"}, {"LOCAL_RANK": ""}):
        assert len(parse_command_line(argv, environ).flags) == 2
    bare = parse_command_line(["--local_rank"], {}).flags
    assert bare == ("--local_rank",)
    assert parse_command_line(["--local_rank="], {"LOCAL_RANK": ""}).flags == ("--local_rank=",)
    with pytest.raises(ConfigError, match="--local_rank: unknown flag"):
        load(None, ["--local_rank=1"], {"LOCAL_RANK": "0"})


def test_split_pairs_flags_with_values():
    tokens = ["--a.b", "1", "--c.d=x=y", "--e.f", "--g.h", "-.5", "stray", "--i.j="]
    assert split(tokens) == [
        Flag("--a.b", "1"),
        Flag("--c.d", "x=y"),
        Flag("--e.f", None),
        Flag("--g.h", "-.5"),
        Flag("stray", None),
        Flag("--i.j", ""),
    ]


@pytest.mark.parametrize(
    ("flags", "section", "field", "meant"),
    [
        (["--run.overwrite"], "run", "overwrite", True),
        (["--run.overwrite", "no"], "run", "overwrite", False),
        (["--optimizer.betas", "[0.8, 9e-1]"], "optimizer", "betas", (0.8, 0.9)),
        (["--optimizer.max_grad_norm", "null"], "optimizer", "max_grad_norm", None),
        (["--run.output_dir", "a: b #1"], "run", "output_dir", Path("a: b #1")),
        (["--data.train", "@x"], "data", "train", "@x"),
        (["--data.train", "[x]"], "data", "train", "[x]"),
        (
            ["--data.train", "[{path: no, weight: 2}]"],
            "data",
            "train",
            (Share(path="no", weight=2.0),),
        ),
        (["--data.evaluate", "null"], "data", "evaluate", None),
        (["--data.evaluate="], "data", "evaluate", None),
        (["--model.config", "{model_type: gpt2}"], "model", "config", {"model_type": "gpt2"}),
        (
            ["--model.config", "{model_type: gpt2}", "--model.config.eps", "1e-5"],
            "model",
            "config",
            {"model_type": "gpt2", "eps": 1e-5},
        ),
    ],
)
def test_values_of_flags_are_read_like_those_of_a_file(flags, section, field, meant):
    assert getattr(getattr(load(None, flags, environ={}).config, section), field) == meant


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--window.exampels", "3"], "--window.exampels: unknown flag; did you mean --window.ex"),
        (["--deepspeed", "ds.json"], "--deepspeed: unknown flag; write --engine.deepspeed ds.json"),
        (["--micro-batch.examples=3"], "unknown flag; write --micro_batch.examples 3"),
        (["--lr", "5e-5"], "--lr: unknown flag; write --optimizer.learning_rate 5e-05"),
        (["--adam_beta1=0.8"], "write --optimizer.betas '[0.8, 0.95]'"),
        (["--per-device-train-batch-size", "4"], "write --micro_batch.examples 4"),
        (["--chekc"], "--chekc: unknown flag; did you mean --check?"),
        (["--zzz"], "--zzz: unknown flag; the sections are run,"),
        (["--windows", "3"], "--windows: unknown flag; did you mean --window.FIELD?"),
        (["--window", "3"], "--window: is a section; set its fields: --window.examples, "),
        (["-x"], "-x: unknown flag; "),
        (["--window.examples"], "--window.examples: needs a value: an integer > 0"),
        (["--micro_batch.examples="], "got nothing (null); needs an integer > 0"),
        (["--micro_batch.examples", "x"], '--micro_batch.examples: got "x"; needs an integer'),
        (["--window.examples.x", "3"], "--window.examples.x: unknown flag"),
        (["--model.config.x", "[1"], "--model.config.x: not YAML: "),
        (["--run.seed", "1", "--run.seed=2"], '--run.seed: given twice, "1" and "2"; keep one'),
        (["--config"], "--config: needs the path of a YAML file"),
        (["--config=b"], "--config: given twice; keep one"),
        (["demo.yaml"], "demo.yaml: is not a flag; a configuration file is given by --config demo"),
        (["max_length"], "settings are written --section.field value; did you mean --data.max_le"),
    ],
)
def test_broken_flags_name_the_remedy(flags, message):
    """C3: unknown flags and stray words are mistakes like the others."""
    with pytest.raises(ConfigError) as caught:
        load(None, flags, environ={})
    lines = str(caught.value).splitlines()
    assert message in lines[0]
    assert len(lines) == 2
