"""DeepSpeed's JSON against this configuration: both values, sources, the remedy."""

import json
import re
from pathlib import Path

import pytest
from deepspeed_json import objections, written, zero
from test_rules import messages

from gradacc_dist.config.deepspeed import asked_for, settings
from gradacc_dist.config.engine import choose_engine
from gradacc_dist.config.fields import nested
from gradacc_dist.config.load import load
from gradacc_dist.config.schema import Engine, Precision
from gradacc_dist.errors import ConfigError

BY_ACCELERATE = {"ACCELERATE_USE_DEEPSPEED": "true"}

ADAMW = {"type": "AdamW", "params": {"lr": 3e-4}}
PARAMS = "optimizer.params"
OPTIMIZER = {"optimizer.type": "AdamW"}
COSINE = {"scheduler.type": "WarmupCosineLR"}
WARM = {"schedule": {"warmup_steps": 10}}

# key, values that agree, one that does not, what is said of it, more of the JSON, sections of ours
OWNED = [
    ("train_micro_batch_size_per_gpu", [8, 8.0, "8"], 4, "micro_batch.examples: 4", {}, {}),
    ("train_batch_size", [64], 32, "window.examples: 32", {}, {}),
    ("gradient_accumulation_steps", [8], 4, "window.examples: 32", {}, {}),
    ("gradient_clipping", [1, 1.0, "1.0"], 0.5, "optimizer.max_grad_norm: 0.5", {}, {}),
    ("gradient_clipping", [1], 0, "optimizer.max_grad_norm: null", {}, {}),
    (
        "gradient_clipping",
        [0, 0.0],
        1,
        "max_grad_norm: 1",
        {},
        {"optimizer": {"max_grad_norm": None}},
    ),
    ("bf16.enabled", [False, "false"], True, "precision.compute: bf16", {}, {}),
    ("fp16.enabled", [False, "False"], True, "precision.compute: fp16", {}, {}),
    (
        "bf16.enabled",
        [True, "true"],
        False,
        "compute: fp32",
        {},
        {"precision": {"compute": "bf16"}},
    ),
    ("data_types.grad_accum_dtype", ["fp32"], "bf16", "precision.accumulate: bf16", {}, {}),
    (f"{PARAMS}.lr", [3e-4, "3e-4"], "1e-5", "optimizer.learning_rate: 1e-05", OPTIMIZER, {}),
    (f"{PARAMS}.betas", [[0.9, 0.95]], [0.9, 0.999], "betas: [0.9, 0.999]", OPTIMIZER, {}),
    (f"{PARAMS}.eps", [1e-8, "1e-8"], 1e-6, "optimizer.eps: 1e-06", OPTIMIZER, {}),
    (f"{PARAMS}.weight_decay", [0.1], 0, "optimizer.weight_decay: 0", OPTIMIZER, {}),
    ("scheduler.params.warmup_max_lr", [3e-4], 1, "optimizer.learning_rate: 1", COSINE, {}),
    ("scheduler.params.warmup_num_steps", [10], 1000, "schedule.warmup_steps: 1000", COSINE, WARM),
    (
        "scheduler.params.cos_min_ratio",
        [0.1],
        0.0001,
        "schedule.final_fraction: 0.0001",
        COSINE,
        {},
    ),
    ("scheduler.params.total_num_steps", [1000, "1000"], 10, "schedule.steps: 10", COSINE, {}),
]


@pytest.mark.parametrize(("key", "agreeing", "other", "remedy", "more", "ours"), OWNED)
def test_a_key_that_this_project_owns(key, agreeing, other, remedy, more, ours, tmp_path):
    """C2: absent, "auto", or equal, else both values, their sources, and the remedy."""
    base = {**zero(), **more}
    for value in ["auto", None, *agreeing]:
        assert objections(written(tmp_path, nested({**base, key: value})), **ours) == [], value
    (message,) = objections(written(tmp_path, nested({**base, key: other})), **ours)
    field = remedy.partition(":")[0].rpartition(".")[2]
    assert message.startswith(f"{key}: {json.dumps(other)} conflicts with ")
    assert re.search(rf"{field}: \S+.* \(at \w+\.{field}\)", message)
    assert 'remove the key or set it to "auto", or set ' in message
    assert message.endswith(remedy)


@pytest.mark.parametrize("key", dict.fromkeys(item[0] for item in OWNED))
@pytest.mark.parametrize("value", ["many", [1], {}, True, False, [0.9, True], -1])
def test_a_value_of_another_type(key, value, tmp_path):
    """No crash; and true is not 1."""
    _, agreeing, *_, more, ours = next(item for item in OWNED if item[0] == key)
    is_agreed = isinstance(value, bool) and value in [v for v in agreeing if isinstance(v, bool)]
    found = objections(written(tmp_path, nested({**zero(), **more, key: value})), **ours)
    assert len(found) == (0 if is_agreed else 1)
    assert not re.search(r"or set .*(true|many)", " ".join(found)) or "precision" in found[0]


def test_numbers_that_nobody_knows_beforehand(tmp_path):
    window = {"window": {"supervised_tokens": 900}}
    for key, theirs in (("train_batch_size", 64), ("gradient_accumulation_steps", 8)):
        (message,) = objections(written(tmp_path, {**zero(), key: theirs}), **window)
        assert f"{key}: {theirs} conflicts with window.supervised_tokens: 900 (at " in message
        assert message.endswith('which leaves it open; remove the key or set it to "auto"')
        assert objections(written(tmp_path, {**zero(), key: "auto"}), **window) == []
    schedule = {"schedule": {"epochs": 2}}
    path = written(tmp_path, nested({**zero(), **COSINE, "scheduler.params.total_num_steps": 9}))
    (message,) = objections(path, **schedule)
    assert "conflicts with schedule.epochs: 2.0 (at schedule.epochs), which leaves it" in message


def test_batch_sizes_over_several_ranks(tmp_path):
    """C2: train_batch_size counts over all ranks; accumulation is what is left of it."""
    sizes = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8}
    path = written(tmp_path, {**zero(), **sizes, "gradient_accumulation_steps": 4})
    assert objections(path, {"WORLD_SIZE": "2"}) == []
    (message,) = objections(path, {"WORLD_SIZE": "4"})
    assert "steps: 4 conflicts with 2, which follows from window.examples: 64 (at" in message
    assert "micro_batch.examples: 8 (at micro_batch.examples) and 4 rank(s)" in message
    assert message.endswith("or set window.examples: 128")
    uneven = {**sizes, "gradient_accumulation_steps": 3}
    assert objections(written(tmp_path, {**zero(), **uneven}), {"WORLD_SIZE": "3"}) == []


@pytest.mark.parametrize(
    ("key", "needed", "others"),
    [
        ("managed_gradient_accumulation", True, [False, "true"]),
        ("gradient_allreduce_op", "mean", ["sum"]),
        ("torch_autocast.enabled", False, [True]),
        ("bf16.check_grad_overflow", True, [False]),
        ("bf16.bf16_master_weights_and_grads", False, [True]),
        ("bf16.bf16_optimizer_states", False, [True]),
        ("fp16.fp16_master_weights_and_grads", False, [True, "false"]),
        ("zero_optimization.compute_grad_norm", True, [False, {}]),
        ("zero_optimization.zero_quantized_weights", False, [True]),
        ("zero_optimization.zero_quantized_nontrainable_weights", False, [True]),
        ("zero_optimization.zero_quantized_gradients", False, [True]),
        ("optimizer.params.adam_w_mode", True, [False]),
        ("optimizer.params.bias_correction", True, [False]),
        ("optimizer.params.amsgrad", False, [True]),
        ("optimizer.params.fp32_optimizer_states", True, [False]),
        ("scheduler.params.warmup_min_lr", 0, [1e-6, "0"]),
        ("scheduler.params.warmup_min_ratio", 0, [0.1, []]),
        ("scheduler.params.warmup_type", "linear", ["log"]),
    ],
)
def test_what_the_result_relies_on(key, needed, others, tmp_path):
    more = OPTIMIZER if key.startswith("optimizer") else COSINE if key.startswith("sched") else {}
    for value in (needed, "auto", None):
        assert objections(written(tmp_path, nested({**zero(), **more, key: value}))) == []
    for other in others:
        (message,) = objections(written(tmp_path, nested({**zero(), **more, key: other})))
        assert message.startswith(f"{key}: {json.dumps(other)} is not possible: ")
        assert message.endswith(f"; remove the key or set it to {json.dumps(needed)}")


@pytest.mark.parametrize("stage", [4, -1, "2", True, False, None, 2.0, [], "two"])
def test_an_unknown_stage(stage, tmp_path):
    (message,) = objections(written(tmp_path, zero(stage)))
    assert message.startswith(
        f"zero_optimization.stage: {json.dumps(stage)} is not a stage of ZeRO"
    )
    assert "needs the number 0, 1 (optimizer" in message


@pytest.mark.parametrize("stage", range(4))
def test_stages(stage, tmp_path):
    path = written(tmp_path, zero(stage))
    assert objections(path) == []
    choice = choose_engine(Engine(deepspeed=path), {}, 2)
    assert choice.reduces_once == (stage < 2)
    assert asked_for(Engine(deepspeed=written(tmp_path, {})), {}).stage == 0


@pytest.mark.parametrize(
    ("stage", "what", "least"),
    [(0, "offload_optimizer", 1), (1, "offload_param", 3), (2, "offload_param", 3)],
)
def test_offload_of_what_is_not_sharded(stage, what, least, tmp_path):
    (message,) = objections(written(tmp_path, zero(stage, **{what: {"device": "cpu"}})))
    assert f"{what}.device: " in message
    assert f'"cpu" does nothing under ZeRO-{stage}; remove the block, or use st' in message
    assert objections(written(tmp_path, zero(least, **{what: {"device": "cpu"}}))) == []
    assert objections(written(tmp_path, zero(stage, **{what: {"device": "none"}}))) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"zero_optimisation": {"stage": 2}},
            "zero_optimisation: a key without use here; remove it, or did y",
        ),
        ({"gradient_cliping": 1}, "did you mean gradient_clipping?"),
        (
            {"bfloat16": {"enabled": True}},
            "bfloat16: a key without use here; remove it, or did you mean bf16?",
        ),
        (
            {"tensor_parallel": {"autotp_size": 2}},
            "tensor_parallel: a key without use here; rem",
        ),
        ({"amp": {"enabled": False}}, "amp: a key without use here; remove it"),
        (
            zero(overlap_com=True),
            "zero_optimization.overlap_com: a key without use here; remove it, or did you",
        ),
        (
            zero(zenflow={"topk_ratio": 0.1}),
            "zero_optimization.zenflow: a key without use here",
        ),
        (zero(2, offload_optimizer={"devise": "cpu"}), "did you mean device?"),
        ({"fp16": {"loss_scale_windov": 8}}, "did you mean loss_scale_window?"),
        (
            {"optimizer": {"type": "Adam", "params": {"max_coeff": 1}}},
            "optimizer.params.max_coeff: a",
        ),
        ({"scheduler": {"type": "WarmupCosineLR", "parms": {}}}, "did you mean params?"),
        ({"zero_optimization": True}, "zero_optimization: true is not an object; write {...}"),
        ({"bf16": True}, "bf16: true is not an object"),
        ({"optimizer": {"type": "Adam", "params": 3}}, "optimizer.params: 3 is not an object"),
        ({"optimizer": "Adam"}, 'optimizer: "Adam" is not an object'),
        ({"scheduler": ["WarmupLR"]}, 'scheduler: ["WarmupLR"] is not an object'),
        (
            {"wall_clock_breakdown": "auto"},
            'wall_clock_breakdown: "auto" has no meaning here; give',
        ),
        ({"fp16": {"loss_scale": "auto"}}, 'fp16.loss_scale: "auto" has no meaning here'),
        ({"fp16": "auto"}, 'fp16: "auto" has no meaning here'),
    ],
)
def test_keys_that_are_wrong(content, expected, tmp_path):
    """C3: DeepSpeed ignores those at the top, and tells of others once the model is loaded."""
    (message,) = objections(written(tmp_path, content))
    assert expected in message


def test_keys_that_are_right(tmp_path):
    content = {"_comment": "ours", "communication_data_type": "bf16", "bf16": None, **zero()}
    content |= {"zero_optimization": None, "steps_per_print": None, "optimizer": None}
    path = written(tmp_path, content)
    assert objections(path) == []
    complete = settings(asked_for(Engine(deepspeed=path), {}).content, Precision(), None)
    assert complete["zero_optimization"] == {"stage": 0}
    assert complete["steps_per_print"] > 2**30


def test_every_mistake_at_once(tmp_path):
    path = written(
        tmp_path, {**zero(5), "train_batch_size": 1, "gradient_cliping": 1, "optimizer": {}}
    )
    yaml = tmp_path / "run.yaml"
    yaml.write_text(f"model: {{path: x}}\nengine:\n  deepspeed: {path}\n")
    with pytest.raises(ConfigError) as caught:
        load(yaml, (), {})
    *lines, last = str(caught.value).splitlines()
    assert last.startswith("4 mistakes")
    assert all(line.startswith(f"{yaml}:3: {path}: ") for line in lines)
    with pytest.raises(ConfigError) as caught:
        load(None, ["--engine.deepspeed", path], {})
    assert str(caught.value).startswith(f"--engine.deepspeed: {path}: ")
    environ = {**BY_ACCELERATE, "ACCELERATE_DEEPSPEED_CONFIG_FILE": path}
    with pytest.raises(ConfigError) as caught:
        load(None, [], environ)
    assert f"ACCELERATE_DEEPSPEED_CONFIG_FILE={path} (environment): {path}: " in str(caught.value)
    path = written(tmp_path, nested({**OPTIMIZER, "optimizer.params.lr": 1}))
    with pytest.raises(ConfigError, match=r"\n1 mistake"):  # ours is undecided: no rule judges it
        load(None, ["--engine.deepspeed", path, "--optimizer.learning_rate=much"], {})


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "adamw"])
@pytest.mark.parametrize("params", [{}, {"torch_adam": True}, {"lr": "auto", "betas": "auto"}])
def test_deepspeeds_own_adam(kind, params, tmp_path):
    path = written(tmp_path, {**zero(), "optimizer": {"type": kind, "params": params}})
    assert objections(path) == []
    complete = settings(asked_for(Engine(deepspeed=path), {}).content, Precision(), 8)
    kept = {key: value for key, value in params.items() if value != "auto"}
    assert complete["optimizer"] == {"type": kind, "params": kept}
    (message,) = objections(path, optimizer={"name": "sgd"})
    assert "conflicts with optimizer.name: sgd (at optimizer.name); only Adam or AdamW" in message


@pytest.mark.parametrize("kind", ["OneBitAdam", "Lamb", "SGD", "Muon", "adam ", 3, [], None])
def test_another_optimizer(kind, tmp_path):
    (message,) = objections(written(tmp_path, {**zero(), "optimizer": {"type": kind}}))
    assert f"optimizer.type: {json.dumps(kind)} conflicts with optimizer.name: adamw (at" in message


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("WarmupLR", "constant"), ("WarmupDecayLR", "linear"), ("WarmupCosineLR", "cosine")],
)
def test_schedulers(kind, shape, tmp_path):
    path = written(tmp_path, {**zero(), "scheduler": {"type": kind, "params": {}}})
    assert objections(path, schedule={"shape": shape, "final_fraction": 0}) == []
    assert "scheduler" not in settings(json.loads(Path(path).read_text()), Precision(), 8)
    (message,) = objections(path, schedule={"shape": "warmup_stable_decay"})
    assert f'"{kind}" conflicts with schedule.shape: warmup_stable_decay (at sched' in message
    assert message.endswith(f"remove the block, or set schedule.shape: {shape}")


def test_a_linear_schedule_of_deepspeed_ends_at_zero(tmp_path):
    (message,) = objections(
        written(tmp_path, {**zero(), "scheduler": {"type": "WarmupDecayLR"}}),
        schedule={"shape": "linear"},
    )
    assert 'scheduler.type: "WarmupDecayLR" ends at 0, but schedule.final_fraction: 0.1' in message


@pytest.mark.parametrize("kind", ["OneCycle", "cosine", 3, [], {}, None])
def test_another_scheduler(kind, tmp_path):
    (message,) = objections(written(tmp_path, {**zero(), "scheduler": {"type": kind}}))
    assert f"scheduler.type: {json.dumps(kind)} conflicts with schedule.shape: cosine" in message
    assert "or choose WarmupLR (constant), WarmupDecayLR (linear) or WarmupCosineLR" in message


def test_precision_that_deepspeed_cannot_keep(tmp_path):
    for stage in range(4):
        (message,) = objections(written(tmp_path, zero(stage)), precision={"compute": "fp64"})
        assert "float64 (precision.compute: fp64 (at precision.compute))" in message
        assert "set precision.compute: fp32, or engine.name: ddp or fsdp2" in message
        for compute in ("bf16", "fp16"):
            found = objections(written(tmp_path, zero(stage)), precision={"compute": compute})
            assert len(found) == (stage == 0)
            assert all(f"ZeRO-0 accumulates in {compute} (precision.co" in text for text in found)


@pytest.mark.parametrize(
    ("stage", "reduce", "compute", "accumulate", "expected"),
    [
        (0, "micro_batch", "fp32", "fp32", "no use under ZeRO-0"),
        (1, "micro_batch", "fp32", "fp32", "no use under ZeRO-1"),
        (1, "window", "bf16", "fp32", None),
        (2, "micro_batch", "bf16", "fp32", None),
        (2, "window", "fp32", "fp32", None),
        (
            2,
            "window",
            "bf16",
            "fp32",
            "set engine.reduce: micro_batch or precision.accumulate: bf16",
        ),
        (
            3,
            "window",
            "fp16",
            "fp32",
            "accumulate in fp16 under ZeRO-3, whatever DeepSpeed is told",
        ),
        (3, "window", "bf16", "bf16", None),
        (2, "auto", "bf16", "bf16", None),
        (2, "auto", "fp16", "fp32", None),
        (
            2,
            "auto",
            "fp16",
            "bf16",
            "precision.compute: fp16 (at precision.compute) and DeepSpeed is ",
        ),
        (
            2,
            "auto",
            "fp32",
            "bf16",
            "accumulate: bf16 (at precision.accumulate) is a setting of Dee",
        ),
    ],
)
def test_when_and_how_gradients_add_up(stage, reduce, compute, accumulate, expected, tmp_path):
    precision = {"compute": compute, "accumulate": accumulate}
    found = objections(
        written(tmp_path, zero(stage)), engine={"reduce": reduce}, precision=precision
    )
    assert len(found) == (expected is not None)
    assert expected is None or expected in found[0]


def test_accumulation_in_bf16_needs_deepspeed():
    (message,) = messages(precision={"compute": "bf16", "accumulate": "bf16"})
    assert "and DeepSpeed is not the engine; set precision.accumulate: fp32" in message


@pytest.mark.parametrize("accumulate", ["fp32", "bf16"])
def test_gradients_travel_and_add_up_as_wide_as_asked(accumulate):
    complete = settings(zero(2), Precision(compute="bf16", accumulate=accumulate), 8)
    assert complete["data_types"] == {"grad_accum_dtype": accumulate}
    assert complete["communication_data_type"] == "fp32"
    assert (complete["bf16"]["enabled"], complete["fp16"]["enabled"]) == (True, False)
    asked = settings({**zero(2), "communication_data_type": "bf16"}, Precision(compute="bf16"), 8)
    assert asked["communication_data_type"] == "bf16"
    assert "data_types" not in settings(zero(2), Precision(), 8)
