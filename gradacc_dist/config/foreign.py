"""Names that people know from transformers, TRL, axolotl, accelerate and DeepSpeed.

None of them is accepted: a second name for a setting would be a second source of truth. Each is
answered with the field that takes its place and, where it can be computed, the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gradacc_dist.config.fields import fields


class Unset:
    """A value that is not known; in a formula it reads `N`."""

    def __str__(self) -> str:
        return "N"


UNSET = Unset()
MICRO_BATCH_NAMES = (
    "per_device_train_batch_size",
    "train_micro_batch_size_per_gpu",
    "micro_batch_size",
)


@dataclass(frozen=True)
class Advice:
    """What to write instead: the field (None: nothing) with its value or a formula for it."""

    field: str | None
    value: object = UNSET
    note: str = ""
    formula: str = ""


# (the value found, every foreign setting of the same configuration by name) -> advice
Translation = Callable[[object, Mapping[str, object]], Advice]


def renamed(field: str, note: str = "", words: Mapping[str, str] | None = None) -> Translation:
    """The same setting under another name; `words` are values that changed their name too."""

    def translate(value: object, _given: Mapping[str, object]) -> Advice:
        word = (words or {}).get(str(value).lower(), value)
        return Advice(field, word, note)

    return translate


def replaced(field: str | None, note: str) -> Translation:
    """Another way to say it, which takes the place of the setting whatever its value."""

    def translate(_value: object, _given: Mapping[str, object]) -> Advice:
        return Advice(field, note=note)

    return translate


def accumulation(value: object, given: Mapping[str, object]) -> Advice:
    """Accumulation steps: not a setting here, but the window that they amount to is."""
    micro = next((given[name] for name in MICRO_BATCH_NAMES if name in given), None)
    if isinstance(value, int) and isinstance(micro, int):
        window = f"{micro} x {value} x ranks = {micro * value} x ranks"
    else:
        window = f"{value} x micro_batch.examples x ranks"
    note = "accumulation is derived: window.examples / (ranks x micro_batch.examples)"
    return Advice("window.examples", note=note, formula=window)


def epochs(value: object, _given: Mapping[str, object]) -> Advice:
    """Epochs, by their own field."""
    return Advice("schedule.epochs", value)


def warmup_ratio(value: object, given: Mapping[str, object]) -> Advice:
    """Warm-up as a fraction of the steps."""
    steps = given.get("max_steps")
    if isinstance(value, int | float) and isinstance(steps, int) and steps > 0:
        return Advice("schedule.warmup_steps", round(value * steps))
    return Advice("schedule.warmup_steps", formula=f"{value} x schedule.steps")


def adam_beta(_value: object, given: Mapping[str, object]) -> Advice:
    """Either of Adam's betas: they are one field of two numbers."""
    defaults = fields()["optimizer.betas"].default
    assert isinstance(defaults, tuple)
    first = given.get("adam_beta1", defaults[0])
    second = given.get("adam_beta2", defaults[1])
    return Advice("optimizer.betas", [first, second], "both decay rates in one list")


def smallest_rate(value: object, given: Mapping[str, object]) -> Advice:
    """The final learning rate, which is a fraction of the peak here."""
    peak = given.get("learning_rate", given.get("lr"))
    if isinstance(value, int | float) and isinstance(peak, int | float) and peak > 0:
        return Advice("schedule.final_fraction", value / peak)
    return Advice("schedule.final_fraction", formula=f"{value} / optimizer.learning_rate")


def switch(compute: str) -> Translation:
    """`bf16: true` and its like: a number format that is on or off."""

    def translate(value: object, _given: Mapping[str, object]) -> Advice:
        if value is False or value == {"enabled": False}:
            return Advice("precision.compute", note="nothing to switch off: remove it")
        return number_format(compute, {})

    return translate


def number_format(value: object, _given: Mapping[str, object]) -> Advice:
    """A number format by name."""
    words = {"no": "fp32", "float32": "fp32", "float64": "fp64", "bfloat16": "bf16"}
    word = "no" if value is False else str(value)  # YAML reads a bare `no` as false
    word = words.get(word, word)
    legal = fields()["precision.compute"].choices()
    if word in legal:
        return Advice("precision.compute", word)
    return Advice("precision.compute", note=f"{word} is not available; legal: {', '.join(legal)}")


def other_engine(_value: object, _given: Mapping[str, object]) -> Advice:
    """An engine chosen by its own block of settings."""
    legal = ", ".join(fields()["engine.name"].choices())
    return Advice("engine.name", note=f"engines available: {legal}")


EVALUATION_BATCH = replaced(
    None, "nothing to set: the evaluation loss does not depend on a batch size; remove it"
)
RANKS = replaced(
    None, "the launcher decides the ranks: accelerate launch --multi_gpu --num_processes N"
)
SHAPES = MappingProxyType({"constant_with_warmup": "constant", "cosine_with_min_lr": "cosine"})
OPTIMIZERS = MappingProxyType(
    {"adam": "adamw", "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw"}
)
ASSISTANT_ONLY = MappingProxyType({"true": "assistant", "false": "all"})
COMPLETION_ONLY = MappingProxyType({"true": "completion", "false": "all"})
ON_INPUTS = MappingProxyType({"true": "all", "false": "auto"})
TRACKERS = MappingProxyType({"wandb": "online", "none": "off", "disabled": "off", "false": "off"})

FOREIGN: Mapping[str, Translation] = MappingProxyType(
    {
        "adam_beta1": adam_beta,
        "adam_beta2": adam_beta,
        "adam_eps": renamed("optimizer.eps"),
        "adam_epsilon": renamed("optimizer.eps"),
        "assistant_only_loss": renamed("data.supervise", words=ASSISTANT_ONLY),
        "average_tokens_across_devices": replaced(
            "objective.denominator", "its default `window` counts over all ranks; remove it"
        ),
        "base_model": renamed("model.path"),
        "batch_size": replaced(
            "window.examples", "for the global batch, micro_batch.examples for one forward"
        ),
        "bf16": switch("bf16"),
        "clip_grad_norm": renamed("optimizer.max_grad_norm"),
        "completion_only_loss": renamed("data.supervise", words=COMPLETION_ONLY),
        "cutoff_len": renamed("data.max_length"),
        "data_seed": renamed("run.seed"),
        "dataset": renamed("data.train"),
        "dataset_name": renamed("data.train"),
        "dataset_path": renamed("data.train"),
        "datasets": replaced("data.train", "one source, or [{path: ..., weight: ...}, ...]"),
        "ddp_timeout": renamed("engine.timeout_seconds"),
        "eval_batch_size": EVALUATION_BATCH,
        "eval_dataset": renamed("data.evaluate"),
        "eval_steps": renamed("evaluate.every_steps"),
        "fp16": switch("fp16"),
        "fsdp": other_engine,
        "fsdp_config": other_engine,
        "global_batch_size": renamed("window.examples", "over all ranks"),
        "grad_clip": renamed("optimizer.max_grad_norm"),
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": renamed("optimizer.max_grad_norm"),
        "logging_dir": renamed("run.output_dir"),
        "logging_steps": renamed("track.every_steps"),
        "lr": renamed("optimizer.learning_rate"),
        "lr_scheduler": renamed("schedule.shape", words=SHAPES),
        "lr_scheduler_type": renamed("schedule.shape", words=SHAPES),
        "max_seq_len": renamed("data.max_length"),
        "max_seq_length": renamed("data.max_length"),
        "max_steps": renamed("schedule.steps"),
        "max_train_steps": renamed("schedule.steps"),
        "micro_batch_size": renamed("micro_batch.examples", "on one rank, in one forward"),
        "min_lr": smallest_rate,
        "mixed_precision": number_format,
        "model_max_length": renamed("data.max_length"),
        "model_name": renamed("model.path"),
        "model_name_or_path": renamed("model.path"),
        "nproc_per_node": RANKS,
        "num_epochs": epochs,
        "num_gpus": RANKS,
        "num_processes": RANKS,
        "num_train_epochs": epochs,
        "num_training_steps": renamed("schedule.steps"),
        "num_warmup_steps": renamed("schedule.warmup_steps"),
        "optim": renamed("optimizer.name", words=OPTIMIZERS),
        "overwrite_output_dir": renamed("run.overwrite"),
        "per_device_eval_batch_size": EVALUATION_BATCH,
        "per_device_train_batch_size": renamed(
            "micro_batch.examples", "on one rank, in one forward"
        ),
        "report_to": renamed("track.wandb", words=TRACKERS),
        "run_name": renamed("track.name"),
        "sequence_len": renamed("data.max_length"),
        "tokenizer_name": renamed("model.tokenizer"),
        "tokenizer_name_or_path": renamed("model.tokenizer"),
        "torch_dtype": number_format,
        "train_batch_size": renamed("window.examples", "over all ranks"),
        "train_file": renamed("data.train"),
        "train_micro_batch_size_per_gpu": renamed(
            "micro_batch.examples", "on one rank, in one forward"
        ),
        "train_on_inputs": renamed("data.supervise", words=ON_INPUTS),
        "val_file": renamed("data.evaluate"),
        "validation_file": renamed("data.evaluate"),
        "wandb_mode": renamed("track.wandb", words=TRACKERS),
        "wandb_name": renamed("track.name"),
        "wandb_project": renamed("track.project"),
        "wandb_run_name": renamed("track.name"),
        "warmup_num_steps": renamed("schedule.warmup_steps"),
        "warmup_ratio": warmup_ratio,
        "weight_decay_rate": renamed("optimizer.weight_decay"),
        "world_size": RANKS,
        "zero_optimization": replaced(
            "engine.deepspeed", "a DeepSpeed JSON that holds it, e.g. configs/deepspeed/zero2.json"
        ),
    }
)
