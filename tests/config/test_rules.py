"""Rules between fields and with the launcher's environment: both values, sources, the remedy."""

import pytest

from gradacc_dist.config.load import load
from gradacc_dist.config.resolved import Resolved, leaves
from gradacc_dist.config.rules import conflicts
from gradacc_dist.config.schema import Config
from gradacc_dist.errors import ConfigError

LLAMA = {"model_type": "llama"}


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def messages(environ=None, **sections) -> list[str]:
    config = Config.model_validate({"model": {"path": "x"}, **sections})
    sources = {leaf: f"at {leaf}" for leaf, _ in leaves(config)}
    return [conflict.message for conflict in conflicts(Resolved(config, sources), environ or {})]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": {}}, ["there is no model", "model.path: null (at model.path)", "to start anew"]),
        (
            {"model": {"path": "x", "config": LLAMA}},
            ["model.path: x (at model.path)", "(at model.config.model_type)", "keep one"],
        ),
        ({"model": {"config": {"a": 1}, "tokenizer": "t"}}, ["model_type: got null", "e.g. llama"]),
        ({"model": {"config": LLAMA}}, ["model.tokenizer: null", "brings none", "`embedded`"]),
        (
            {"schedule": {"steps": 5, "warmup_steps": 6}},
            ["warmup_steps: 6 (at schedule.warmup_steps) exceeds", "steps: 5 (at", "at most 5"],
        ),
        (
            {"window": {"examples": 8, "supervised_tokens": 900}},
            ["window.examples: 8 (at", "supervised_tokens: 900 (at", "keep one"],
        ),
        (
            {"schedule": {"steps": 8, "epochs": 2}},
            ["schedule.steps: 8 (at", "schedule.epochs: 2.0 (at", "set the other to null"],
        ),
        (
            {"data": {"streaming": True}, "schedule": {"epochs": 2}},
            ["schedule.epochs: 2.0 (at", "data.streaming: true (at", "set schedule.steps"],
        ),
        (
            {"data": {"streaming": True, "train": [{"path": "a"}, {"path": "b", "weight": 0.5}]}},
            ["data.train (at", "weights 1, 0.5", "streaming: true (at", "leave the weights out"],
        ),
        (
            {"run": {"overwrite": True, "resume": "runs/a"}},
            [
                "run.overwrite: true (at run.overwrite) starts anew",
                "run.resume: runs/a (at",
                "never",
            ],
        ),
        (
            {"run": {"allow_change": ["windows", "optimizer", "data.train", "model.config.x"]}},
            ["run.allow_change (at run.allow_change): windows is no field; did you mean window?"],
        ),
        ({"run": {"allow_change": ["zzzz"]}}, ["zzzz is no field; name a section or a section.fi"]),
        ({"engine": {"name": "ddp"}}, ["ddp (at engine.name)", "unset", "accelerate launch --mul"]),
        (
            {"engine": {"offload": True}},
            ["engine.offload: true (at engine.offload) is a setting of FSDP2", "single (there is"],
        ),
        (
            {"engine": {"name": "fsdp2", "replicas": 2}},
            ["engine.replicas: 2 groups cannot be formed of 1 rank(s)"],
        ),
    ],
)
def test_fields_that_conflict(sections, expected):
    (message,) = messages(**sections)
    for fragment in expected:
        assert fragment in message


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"config": LLAMA, "tokenizer": "embedded"}},
        {"schedule": {"steps": 5, "warmup_steps": 5}},
        {"schedule": {"epochs": 2, "warmup_steps": 5000}},
        {"window": {"supervised_tokens": 900}},
        {"data": {"streaming": True, "train": [{"path": "a"}, {"path": "b"}]}},
        {"engine": {"name": "single"}},
        {"engine": {"name": "fsdp2", "wrap": [], "offload": True, "reduce": "window"}},
    ],
)
def test_fields_that_agree(sections):
    assert messages(**sections) == []


@pytest.mark.parametrize(
    ("environ", "engine", "expected"),
    [
        ({"WORLD_SIZE": "4"}, "single", ["WORLD_SIZE=4 (environment)", "set engine.name: auto"]),
        ({"WORLD_SIZE": "1"}, "ddp", ["WORLD_SIZE is 1 (environment)", "--num_processes 2"]),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            "auto",
            ["asks for bf16", "precision.compute: fp32 (at precision.compute)", "_precision no"],
        ),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3", "WORLD_SIZE": "2"},
            "auto",
            ["asks for 3 accumulation steps", "2 ranks", "set window.examples: 48"],
        ),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "WORLD_SIZE": "0"},
            "auto",
            ["asks for 4 accumulation steps", "set window.examples: 32"],
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "WORLD_SIZE": "2"},
            "ddp",
            ["asks for DeepSpeed, but engine.name: ddp (at engine.name)", "auto or deepspeed"],
        ),
        ({"ACCELERATE_USE_FSDP": "True"}, "auto", ["version 1, acc", "--fsdp_version 2"]),
        ({"ACCELERATE_USE_FSDP": "1", "FSDP_VERSION": "1"}, "auto", ["FSDP version 1, but"]),
        (
            {**FSDP2, "WORLD_SIZE": "2"},
            "ddp",
            ["asks for FSDP, but engine.name: ddp (at engine.name)", "auto or fsdp2"],
        ),
        (
            {**FSDP2, "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"},
            "fsdp2",
            ["SIZE_BASED_WRAP", "set it to TRANSFORMER_BASED_WRAP"],
        ),
        ({**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "auto", ["not offer", "to false"]),
        ({**FSDP2, "PARALLELISM_CONFIG_TP_SIZE": "2"}, "auto", ["asks for 2", "set it to 1"]),
        (
            {**FSDP2, "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "3", "WORLD_SIZE": "4"},
            "auto",
            ["engine.replicas: 3 groups", "of 4 rank(s)", "divisor"],
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "1"}, "auto", ["Megatron-LM", "engine.name can be auto"]),
    ],
)
def test_an_environment_that_conflicts(environ, engine, expected):
    """Contract 10: rejected with both values and the remedy, never rewritten."""
    (message,) = messages(environ, engine={"name": engine})
    for fragment in expected:
        assert fragment in message


@pytest.mark.parametrize(
    ("environ", "engine"),
    [
        ({"WORLD_SIZE": "4"}, "auto"),
        ({"WORLD_SIZE": "4"}, "ddp"),
        ({"WORLD_SIZE": "1"}, "single"),
        ({"WORLD_SIZE": ""}, "single"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "auto"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, "auto"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8"}, "auto"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "WORLD_SIZE": "2"}, "auto"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}, "auto"),
        ({"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": ""}, "auto"),
        ({"FSDP_VERSION": "1", "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "auto"),
        ({**FSDP2, "WORLD_SIZE": "2"}, "auto"),
        ({**FSDP2, "WORLD_SIZE": "1"}, "fsdp2"),
        ({**FSDP2, "FSDP_AUTO_WRAP_POLICY": "NO_WRAP", "FSDP_IGNORED_MODULES": "None"}, "auto"),
    ],
)
def test_an_environment_that_agrees(environ, engine):
    assert messages(environ, engine={"name": engine}) == []


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    """A folder named wandb, which wandb leaves in the working directory, is not the package."""
    assert messages(track={"wandb": "online"}) == []
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    (message,) = messages(track={"wandb": "online"})
    assert message.startswith("track.wandb: online (at track.wandb) needs the package wandb")
    assert "pip install 'gradacc-dist[wandb]'" in message
    assert messages(track={"wandb": "off"}) == []


def test_load_reports_rules_with_their_place(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("schedule:\n  warmup_steps: 11\n  steps: 10\n")
    with pytest.raises(ConfigError) as caught:
        load(path, ["--engine.name", "single"], {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"})
    absent, warmup, single, fsdp, version, count = str(caught.value).splitlines()
    assert absent.startswith(f"{path}: model: there is no model")
    assert warmup.startswith(f"{path}:2: schedule.warmup_steps: 11 ({path}:2) exceeds")
    assert single.startswith("--engine.name: single (--engine.name) runs one rank")
    assert fsdp.startswith("ACCELERATE_USE_FSDP=true (environment): accelerate launch asks")
    assert version.startswith("ACCELERATE_USE_FSDP=true (environment): accelerate launch asks")
    assert count.startswith("5 mistakes")
