"""Who asks for DeepSpeed, with which JSON, and what it is started with.

The JSON decides how memory is shared out: stage, offload, buckets, overlap. What the result
depends on (batch sizes, clipping, optimizer, learning rate, precision) is decided by this
project's configuration: `config/deepspeed_rules.py` refuses a JSON that says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradacc_dist.config.launcher import is_on
from gradacc_dist.config.schema import Engine, Precision

AUTO = "auto"
STAGES = (0, 1, 2, 3)
USE_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
CONFIG_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"

# What a value "auto" becomes, as transformers computes it from the model's hidden size h.
BUCKETS: Mapping[str, Callable[[int], int]] = {
    "reduce_bucket_size": lambda h: h * h,
    "stage3_prefetch_bucket_size": lambda h: int(0.9 * h * h),
    "stage3_param_persistence_threshold": lambda h: 10 * h,
}
# These decide nothing here: the model is saved by this project, and offload is off unless named.
FORGOTTEN = (
    "stage3_gather_16bit_weights_on_model_save",
    "offload_optimizer.device",
    "offload_param.device",
)


@dataclass(frozen=True)
class DeepSpeed:
    """A request for DeepSpeed. `content` is the JSON, `source` its path or the launcher.

    `at`: the field or variable that asks. `problem`: why there is no content, for the rules.
    """

    content: Mapping[str, Any]
    source: str
    at: str
    problem: str | None = None

    @property
    def stage(self) -> Any:
        """The ZeRO stage, whatever the JSON says it is; 0 where it names none."""
        return value_at(self.content, "zero_optimization.stage") or 0


def asked_for(config: Engine, environ: Mapping[str, str]) -> DeepSpeed | None:
    """The request of the configuration, else of accelerate launch; None where nobody asks."""
    if config.deepspeed is not None:
        return _read(config.deepspeed.expanduser(), "engine.deepspeed")
    if is_on(environ, USE_DEEPSPEED):
        if path := environ.get(CONFIG_FILE):
            return _read(Path(path).expanduser(), CONFIG_FILE)
        return DeepSpeed(_written_out(environ), "accelerate launch", USE_DEEPSPEED)
    if config.name == "deepspeed":
        problem = (
            "engine.name: deepspeed needs to know the ZeRO stage; set engine.deepspeed to a "
            "DeepSpeed JSON, e.g. configs/deepspeed/zero2.json"
        )
        return DeepSpeed({}, "engine.name", "engine.name", problem)
    return None


def _read(path: Path, at: str) -> DeepSpeed:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problem = (
            f"{path} cannot be read ({error.strerror}; looked from {Path.cwd()}); give the path of "
            "a DeepSpeed JSON, e.g. configs/deepspeed/zero2.json"
        )
    except ValueError as error:
        problem = f"{path} is not JSON: {error}"
    else:
        if isinstance(content, dict):
            return DeepSpeed(content, str(path), at)
        problem = f"{path} holds {json.dumps(content)[:40]}, which is not a JSON object"
    return DeepSpeed({}, str(path), at, problem)


def _written_out(environ: Mapping[str, str]) -> dict[str, Any]:
    """The JSON that accelerate would make of its own settings (its DeepSpeedPlugin)."""
    stage = environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    zero: dict[str, Any] = {"stage": int(stage) if stage.isdecimal() else stage}
    for name in ("optimizer", "param"):
        device = environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{name.upper()}_DEVICE", "none")
        if device != "none":
            zero[f"offload_{name}"] = {"device": device}
    content: dict[str, Any] = {"zero_optimization": zero}
    clipping = environ.get("ACCELERATE_GRADIENT_CLIPPING", "none")
    if clipping != "none":
        content["gradient_clipping"] = AUTO if clipping == AUTO else float(clipping)
    return content


def settings(
    content: Mapping[str, Any], precision: Precision, hidden_size: int | None
) -> dict[str, Any]:
    """What DeepSpeed is started with: `content` where the rules found no conflict, completed.

    `hidden_size` gives the bucket sizes that are "auto"; None, of a model that has no single one,
    leaves them at DeepSpeed's defaults. Window, clipping and learning rate are told step by step.
    """
    kept: dict[str, Any] = json.loads(json.dumps(content))
    for block in ("train_batch_size", "scheduler"):
        kept.pop(block, None)
    zero = kept.setdefault("zero_optimization", {})
    zero.setdefault("stage", 0)
    for name, size in BUCKETS.items():
        if zero.get(name) == AUTO:
            del zero[name]
            if hidden_size is not None:
                zero[name] = size(hidden_size)
    for path in FORGOTTEN:
        _remove_auto(zero, path.split("."))
    for compute in ("fp16", "bf16"):
        kept[compute] = {**kept.get(compute, {}), "enabled": precision.compute == compute}
    if precision.compute in ("fp16", "bf16"):
        # Gradients travel and add up in fp32: DeepSpeed's default is the model's own format.
        kept["data_types"] = {**kept.get("data_types", {}), "grad_accum_dtype": "fp32"}
        kept.setdefault("communication_data_type", "fp32")
        if precision.accumulate == "bf16":
            kept["data_types"]["grad_accum_dtype"] = "bf16"
    return kept | {
        "train_micro_batch_size_per_gpu": 1,
        # Windows differ in length: where one ends is told, not counted.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": kept.get("steps_per_print", 2**31),
        # Any torch optimizer works on flat partitions; DeepSpeed knows only some by name.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": "optimizer" in kept,
    }


def _remove_auto(block: dict[str, Any], path: list[str]) -> None:
    *above, key = path
    for name in above:
        block = block.get(name, {})
    if block.get(key) == AUTO:
        del block[key]


def value_at(content: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    value: Any = content
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def leaves_of(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not an object, with its dotted path."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
