"""Who asks for DeepSpeed, and what it is started with: no "auto" is left."""

import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from deepspeed_json import objections, source_of, written, zero
from test_rules import FSDP2, messages

from gradacc_dist.config.deepspeed import asked_for, settings
from gradacc_dist.config.engine import choose_engine
from gradacc_dist.config.fields import nested
from gradacc_dist.config.identity import flat
from gradacc_dist.config.load import load
from gradacc_dist.config.schema import Engine, Precision

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs" / "deepspeed").glob("*.json"))
BY_ACCELERATE = {"ACCELERATE_USE_DEEPSPEED": "true"}

# The keys whose "auto" transformers 5 fills: fill_match, fill_only of integrations/deepspeed.py
BY_TRANSFORMERS = [
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "train_batch_size",
    "gradient_clipping",
    "optimizer.params.lr",
    "optimizer.params.betas",
    "optimizer.params.eps",
    "optimizer.params.weight_decay",
    "scheduler.params.warmup_min_lr",
    "scheduler.params.warmup_max_lr",
    "scheduler.params.total_num_steps",
    "scheduler.params.warmup_num_steps",
    "fp16.enabled",
    "bf16.enabled",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
]
# Those of accelerate 1: plugin_to_config_mapping of DeepSpeedPlugin in utils/dataclasses.py
OF_ACCELERATE = [
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_optimization.stage",
    "zero_optimization.offload_optimizer.device",
    "zero_optimization.offload_param.device",
    "zero_optimization.offload_param.nvme_path",
    "zero_optimization.offload_optimizer.nvme_path",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
]


def test_a_json_in_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, zero(1))
    for flags, at in (([], "engine.deepspeed"), (["--engine.deepspeed", "~/ds.json"], "flag")):
        yaml = tmp_path / "run.yaml"
        yaml.write_text("model: {path: x}\nengine: {deepspeed: ~/ds.json}")
        config = load(None if flags else yaml, flags, {}).config
        choice = choose_engine(config.engine, {}, 1)
        assert (choice.name, choice.deepspeed.stage) == ("deepspeed", 1), at
        assert choice.reason == f"engine.deepspeed asks for it ({tmp_path / 'ds.json'})"


def test_a_json_of_accelerate(tmp_path):
    path = written(tmp_path, zero(3))
    environ = {**BY_ACCELERATE, "ACCELERATE_DEEPSPEED_CONFIG_FILE": path}
    choice = choose_engine(Engine(), environ, 2)
    assert (choice.name, choice.deepspeed.stage, choice.reduces_once) == ("deepspeed", 3, False)
    assert messages({**environ, "WORLD_SIZE": "2"}) == []
    assert choose_engine(Engine(), {**environ, "ACCELERATE_USE_DEEPSPEED": "no"}, 2).name == "ddp"


@pytest.mark.parametrize(
    ("environ", "content"),
    [
        # What `accelerate launch` wrote, of a YAML with and without a stage.
        ({}, zero(2)),
        (
            {
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
                "ACCELERATE_GRADIENT_CLIPPING": "1.0",
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
                "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu",
                "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
            },
            zero(3, offload_param={"device": "cpu"}),
        ),
        (
            {
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1",
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
            },
            zero(1, offload_optimizer={"device": "cpu"}),
        ),
    ],
)
def test_accelerates_own_settings(environ, content):
    asked = asked_for(Engine(), {**BY_ACCELERATE, **environ})
    assert asked.content == content
    assert messages({**BY_ACCELERATE, **environ}) == []


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "4"},
            ["accelerate launch: zero_opt", "4 is not a st"],
        ),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "two"}, ['stage: "two" is not a stage']),
        (
            {"ACCELERATE_GRADIENT_CLIPPING": "0.5"},
            ["launch asks for 0.5, but optimizer.max_grad_norm: 1.0 (at", "change that, or leave"],
        ),
        ({"ACCELERATE_GRADIENT_CLIPPING": "much"}, ["launch asks for much, but optimizer.max_"]),
        ({"ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "Moe"}, ['"leaf_module": {"classes"']),
        (
            {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"},
            ["offload_optimizer.device: nvme is not offered", "use cpu"],
        ),
        (
            {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"},
            ['offload_param.device: "cpu" does nothing under ZeRO-2', "use stage 3"],
        ),
    ],
)
def test_accelerates_own_settings_that_conflict(environ, expected):
    (message,) = messages({**BY_ACCELERATE, **environ})
    for fragment in expected:
        assert fragment in message


@pytest.mark.parametrize("clipping", ["none", "auto", "1", "1.0"])
def test_accelerates_clipping_agrees(clipping, tmp_path):
    environ = {**BY_ACCELERATE, "ACCELERATE_GRADIENT_CLIPPING": clipping}
    assert messages(environ) == []
    assert messages({"ACCELERATE_GRADIENT_CLIPPING": "7"}) == []
    never = {**BY_ACCELERATE, "ACCELERATE_GRADIENT_CLIPPING": "0.0"}
    assert messages(never, optimizer={"max_grad_norm": None}) == []


@pytest.mark.parametrize("by_accelerate", [False, True])
def test_auto_in_a_json_is_what_the_launcher_says(tmp_path, by_accelerate):
    offload = {"device": "auto", "nvme_path": "auto"}
    path = written(tmp_path, zero("auto", offload_optimizer=offload, offload_param=offload))
    file = {"ACCELERATE_DEEPSPEED_CONFIG_FILE": path} if by_accelerate else {}
    engine = Engine() if by_accelerate else Engine(deepspeed=path)
    environ = {**BY_ACCELERATE, **file}

    complete = settings(asked_for(engine, environ).content, Precision(), 8)["zero_optimization"]
    assert complete == {"stage": 2, "offload_optimizer": {}, "offload_param": {}}

    environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = "3"
    environ["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] = "cpu"
    complete = settings(asked_for(engine, environ).content, Precision(), 8)["zero_optimization"]
    assert complete == {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {}}
    assert messages(environ, engine=engine.model_dump()) == []


def test_a_json_and_the_launcher_say_the_same(tmp_path):
    path = written(tmp_path, zero(2, offload_optimizer={"device": "cpu"}))
    environ = {**BY_ACCELERATE, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    environ["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] = "cpu"
    assert objections(path, environ) == []
    environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = "3"
    environ["ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"] = "cpu"
    stage, offload = objections(path, environ)
    assert f"asks for 3, but {path} has zero_optimization.stage: 2; keep one" in stage
    assert "asks for cpu, but" in offload
    assert "offload_param.device: null; keep one" in offload
    assert objections(path, {**environ, "ACCELERATE_USE_DEEPSPEED": "false"}) == []


def test_nobody_asks():
    assert asked_for(Engine(), {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}) is None
    assert asked_for(Engine(name="ddp"), {}) is None


def test_a_stage_is_needed():
    (message,) = messages(engine={"name": "deepspeed"})
    assert message.startswith("engine.name: deepspeed needs to know the ZeRO stage; set engine.dee")


def test_another_engine_beside_a_json(tmp_path):
    path = written(tmp_path, zero())
    (message,) = objections(path, {"WORLD_SIZE": "2"}, engine={"name": "ddp"})
    assert f"engine.deepspeed: {path} (at engine.deepspeed) asks for DeepSpeed, but eng" in message
    assert (
        "engine.name: ddp (at engine.name); set engine.name: auto, or engine.deepspeed" in message
    )
    assert objections(path, {"WORLD_SIZE": "2"}, engine={"name": "deepspeed"}) == []
    (message,) = objections(path, FSDP2)
    assert f"asks for FSDP, but engine.deepspeed: {path} (at engine.deepspeed); set it" in message


def test_two_files(tmp_path):
    path = written(tmp_path, zero())
    environ = {**BY_ACCELERATE, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "other.json"}
    (message,) = objections(path, environ)
    assert f"names other.json, but engine.deepspeed: {path} (at engine.deepspeed); keep" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "ds.json cannot be read (No such file or directory; looked from "),
        ("{", "is not JSON (which has no comments): Expecting property name"),
        ('{"a": 1, // why\n}', "line 1 column 10"),
        ("[1]", "holds [1], which is not a JSON object"),
        ("null", "holds null, which is not a JSON object"),
        ('{"zero_optimization": {"stage": 1, "stage": 2}}', '"stage" is given twice in one obj'),
        (b"\xff{}", "is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read(text, expected, tmp_path):
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (message,) = messages(engine={"deepspeed": str(path)})
    assert expected in message
    assert message.startswith(str(path))


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(zero(3)), encoding="utf-8-sig")
    assert objections(str(path)) == []
    assert asked_for(Engine(deepspeed=path), {}).stage == 3


def test_the_keys_that_others_resolve():
    """The lists above are those of the installed packages."""
    text = source_of("transformers", "integrations/deepspeed.py")
    filled = set(re.findall(r'self\.fill_(?:match|only)\(\s*"([\w.]+)"', text))
    assert filled == set(BY_TRANSFORMERS)
    text = source_of("accelerate", "utils/dataclasses.py")
    mapping = text.partition("plugin_to_config_mapping = {")[2].partition("}")[0]
    assert set(re.findall(r'": "([\w.]+)"', mapping)) == set(OF_ACCELERATE)


@pytest.mark.parametrize("hidden_size", [64, None])
@pytest.mark.parametrize("stage", ["auto", 0, 1, 2, 3])
def test_auto_wherever_others_accept_it(stage, hidden_size, tmp_path):
    """C2: every key accepted, none left."""
    keys = {*BY_TRANSFORMERS, *OF_ACCELERATE}
    types = {"optimizer.type": "AdamW", "scheduler.type": "WarmupCosineLR"}
    content = nested({**types, **dict.fromkeys(keys, "auto")})
    content["zero_optimization"]["stage"] = stage
    path = written(tmp_path, content)
    assert objections(path, {"WORLD_SIZE": "2"}) == []
    found = asked_for(Engine(deepspeed=path), {}).content
    for compute, accumulate in product(("fp32", "bf16", "fp16"), ("fp32", "bf16")):
        precision = Precision(compute=compute, accumulate=accumulate)
        complete = settings(found, precision, hidden_size)
        assert {key for key, value in flat(complete).items() if value in ("auto", None)} == set()
        zero_block = complete["zero_optimization"]
        assert zero_block["stage"] == (2 if stage == "auto" else stage)
        sizes = {name: size for name, size in zero_block.items() if "size" in name or "thr" in name}
        # transformers' formulas, by hand for h = 64
        assert sizes == (
            {
                "reduce_bucket_size": 4096,
                "stage3_prefetch_bucket_size": 3686,
                "stage3_param_persistence_threshold": 640,
            }
            if hidden_size
            else {}
        )


def test_settings_tell_deepspeed_nothing_of_what_is_told_step_by_step():
    theirs = {
        **zero(2, reduce_bucket_size=5),
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 8,
        "gradient_clipping": 1.0,
        "zero_force_ds_cpu_optimizer": True,
        "zero_allow_untested_optimizer": False,
        "steps_per_print": 10,
        "fp16": {"initial_scale_power": 8},
    }
    before = json.dumps(theirs)
    complete = settings(theirs, Precision(compute="fp16"), 8)
    assert json.dumps(theirs) == before
    assert "train_batch_size" not in complete
    assert complete["train_micro_batch_size_per_gpu"] == 1
    assert complete["gradient_accumulation_steps"] == 1
    assert complete["gradient_clipping"] == 0
    assert complete["zero_force_ds_cpu_optimizer"] is False
    assert complete["zero_allow_untested_optimizer"] is True
    assert complete["steps_per_print"] == 10
    assert complete["fp16"] == {"initial_scale_power": 8, "enabled": True}
    assert complete["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 5}


def test_six_files_are_shipped():
    names = "zero0 zero1 zero2 zero2_offload zero3 zero3_offload"
    assert [path.stem for path in SHIPPED] == names.split()


@pytest.mark.parametrize("ranks", ["1", "2"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_fits_the_demo(path, ranks):
    resolved = load(None, ["--engine.deepspeed", str(path)], {"WORLD_SIZE": ranks})
    assert choose_engine(resolved.config.engine, {}, int(ranks)).name == "deepspeed"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_check_is_quick_and_imports_nothing_heavy(path):
    """C3, C9: `--check` with a JSON."""
    code = (
        "import sys; from gradacc_dist.train import main;"
        "assert main(sys.argv[1:]) == 0;"
        "assert not {'torch', 'numpy', 'deepspeed', 'transformers'} & set(sys.modules)"
    )
    config = str(ROOT / "configs" / "demo.yaml")
    argv = ["--config", config, "--engine.deepspeed", str(path), "--check"]
    argv.append("--local_rank=0")  # as the `deepspeed` launcher adds it
    environ = {**os.environ, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    before = os.times()
    subprocess.run(
        [sys.executable, "-c", code, *argv], env=environ, check=True, stdout=subprocess.DEVNULL
    )
    after = os.times()
    # Of the processor, which others do not slow down. It takes 0.25 s.
    assert after.children_user - before.children_user < 0.6
