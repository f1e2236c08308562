"""Names from other trainers are answered with the field and, where it follows, the value (C2)."""

import pytest

from gradacc_dist.config.fields import accepts, fields
from gradacc_dist.config.foreign import FOREIGN
from gradacc_dist.config.load import load
from gradacc_dist.errors import ConfigError


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("value", [1, 0.1, True, False, None, "auto", "linear", {"a": 1}, [1]])
def test_every_answer_names_a_field_that_exists(name, value):
    advice = FOREIGN[name](value, {})
    assert advice.field is None or advice.field in fields()
    assert advice.field or advice.note


def test_no_foreign_name_hides_a_field():
    assert not set(FOREIGN) & {path.partition(".")[2] for path in fields()}
    assert all(name == name.lower() for name in FOREIGN)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("per_device_train_batch_size: 4", "write micro_batch.examples: 4 "),
        ("train_batch_size: 256", "write window.examples: 256 (over all ranks)"),
        (
            "gradient_accumulation_steps: 8",
            "write window.examples: 8 x micro_batch.examples x ranks (accumulation is derived: "
            "window.examples / (ranks x micro_batch.examples))",
        ),
        (
            "gradient_accumulation_steps: 8\nper_device_train_batch_size: 4",
            "write window.examples: 4 x 8 x ranks = 32 x ranks (accumulation is derived",
        ),
        ("num_train_epochs: 3", "write schedule.epochs: 3"),
        ("max_steps: 500", "write schedule.steps: 500"),
        ("max_steps: -1", "use schedule.steps, which needs an integer > 0"),
        ("warmup_ratio: 0.03", "write schedule.warmup_steps: 0.03 x schedule.steps"),
        ("warmup_ratio: 0.03\nmax_steps: 1000", "write schedule.warmup_steps: 30"),
        ("learning_rate: 2e-5", "write optimizer.learning_rate: 2e-05"),
        ("min_lr: 1e-5\nlearning_rate: 1e-4", "write schedule.final_fraction: 0.1"),
        ("lr_scheduler_type: constant_with_warmup", "write schedule.shape: constant"),
        ("lr_scheduler_type: polynomial", "use schedule.shape, which needs one of constant,"),
        ("optim: adamw_torch", "write optimizer.name: adamw"),
        ("adam_beta1: 0.8\nadam_beta2: 0.9", "write optimizer.betas: [0.8, 0.9]"),
        ("max_grad_norm: 0.5", "write optimizer.max_grad_norm: 0.5"),
        ("gradient_clipping: 0.5", "write optimizer.max_grad_norm: 0.5"),
        ("bf16: no", "use precision.compute (nothing to switch off: remove it)"),
        ("mixed_precision: no", "write precision.compute: fp32"),
        ("fp16: {enabled: true}", "write precision.compute: fp16"),
        ("fp16: {enabled: false}", "use precision.compute (nothing to switch off: remove it)"),
        ("mixed_precision: fp8", "use precision.compute (fp8 is not available; legal: fp32, fp64"),
        ("torch_dtype: float64", "write precision.compute: fp64"),
        ("model_name_or_path: gpt2", "write model.path: gpt2"),
        ("base_model: 'a: b'", 'write model.path: "a: b"'),
        ("output_dir: out", "write run.output_dir: out"),
        ("seed: 1", "write run.seed: 1"),
        ("assistant_only_loss: true", "write data.supervise: assistant"),
        ("completion_only_loss: no", "write data.supervise: all"),
        ("train_on_inputs: false", "write data.supervise: auto"),
        ("max_seq_length: 512", "write data.max_length: 512"),
        ("eval_steps: 0.1", "use evaluate.every_steps, which needs an integer > 0, or null"),
        ("deepspeed: ds.json", "write engine.deepspeed: ds.json"),
        ("zero_optimization: {stage: 2}", "use engine.deepspeed (a DeepSpeed JSON that holds it"),
        ("fsdp: full_shard", "use engine.name (engines available: auto, single, ddp, fsdp2"),
        ("per_device_eval_batch_size: 8", "nothing to set: the evaluation loss does not depend"),
        ("report_to: wandb", "write track.wandb: online"),
        ("report_to: none", 'write track.wandb: "off"'),
        ("report_to: tensorboard", "use track.wandb, which needs one of off, offline, online"),
        ("run_name: first", "write track.name: first"),
        ("num_processes: 8", "the launcher decides the ranks"),
        ("training_arguments: {logging_steps: 5}", "write track.every_steps: 5"),
    ],
)
def test_answers(text, answer, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"{text}\nmodel: {{path: x}}")
    with pytest.raises(ConfigError) as caught:
        load(path, (), environ={})
    assert answer in str(caught.value)
    assert str(caught.value).startswith(f"{path}:1: {text.partition(':')[0]}: unknown ")


def test_only_values_that_the_schema_takes_are_proposed():
    assert accepts("window.examples", 4)
    assert not accepts("window.examples", -1)
    assert not accepts("optimizer.name", "lion")
