"""Who asks for DeepSpeed, with which JSON, and what it is started with.

The JSON decides how memory is shared out: stage, offload, buckets, overlap. What the result
depends on (batch sizes, clipping, optimizer, learning rate, precision) is decided by this
project's configuration: `config/deepspeed_rules.py` refuses a JSON that says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gradacc_dist.config.deepspeed_keys import FIXED
from gradacc_dist.config.fields import nested, shown
from gradacc_dist.config.launcher import is_on
from gradacc_dist.config.schema import Engine, Precision

AUTO = "auto"
STAGES = (0, 1, 2, 3)
PARAMS = "optimizer.params."
USE_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
CONFIG_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
STAGE = "zero_optimization.stage"
DEFAULT_STAGE = 2  # accelerate's and transformers', where a JSON leaves it "auto"

# What accelerate launch can say without a JSON, or to complete one that leaves it "auto".
VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        STAGE: "ACCELERATE_DEEPSPEED_ZERO_STAGE",
        **{
            f"zero_optimization.offload_{what}.{key}": (
                f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_{key}".upper()
            )
            for what in ("optimizer", "param")
            for key in ("device", "nvme_path")
        },
    }
)
# What a value "auto" becomes, as transformers computes it from the model's hidden size h.
BUCKETS: Mapping[str, Callable[[int], int]] = MappingProxyType(
    {
        "reduce_bucket_size": lambda h: h * h,
        "stage3_prefetch_bucket_size": lambda h: int(0.9 * h * h),
        "stage3_param_persistence_threshold": lambda h: 10 * h,
    }
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
        zero = self.content.get("zero_optimization")
        return zero.get("stage", 0) if isinstance(zero, Mapping) else 0


def asked_for(config: Engine, environ: Mapping[str, str]) -> DeepSpeed | None:
    """The request of the configuration, else of accelerate launch; None where nobody asks."""
    if config.deepspeed is not None:
        return _read(config.deepspeed.expanduser(), "engine.deepspeed", environ)
    if is_on(environ, USE_DEEPSPEED):
        if path := environ.get(CONFIG_FILE):
            return _read(Path(path).expanduser(), CONFIG_FILE, environ)
        written = {STAGE: DEFAULT_STAGE, **launcher_values(environ)}
        return DeepSpeed(nested(written), "accelerate launch", USE_DEEPSPEED)
    if config.name == "deepspeed":
        problem = (
            "engine.name: deepspeed needs to know the ZeRO stage; set engine.deepspeed to a "
            "DeepSpeed JSON, e.g. configs/deepspeed/zero2.json"
        )
        return DeepSpeed({}, "engine.name", "engine.name", problem)
    return None


def launcher_values(environ: Mapping[str, str]) -> dict[str, Any]:
    """What accelerate launch says about DeepSpeed besides naming a JSON, by the JSON's key."""
    if not is_on(environ, USE_DEEPSPEED):
        return {}
    texts = {key: environ.get(variable, "") for key, variable in VARIABLES.items()}
    return {
        key: int(text) if text.isdecimal() else text
        for key, text in texts.items()
        if text not in ("", "none", AUTO)
    }


def _read(path: Path, at: str, environ: Mapping[str, str]) -> DeepSpeed:
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=_object)
    except OSError as error:
        problem = (
            f"{path} cannot be read ({error.strerror}; looked from {Path.cwd()}); give the path of "
            "a DeepSpeed JSON, e.g. configs/deepspeed/zero2.json"
        )
    except ValueError as error:
        problem = f"{path} is not JSON (which has no comments): {error}"
    else:
        if isinstance(content, dict):
            for key, value in {STAGE: DEFAULT_STAGE, **launcher_values(environ)}.items():
                *above, name = key.split(".")
                if value_at(content, key) == AUTO:
                    value_at(content, ".".join(above))[name] = value
            return DeepSpeed(content, str(path), at)
        problem = f"{path} holds {shown(content)}, which is not a JSON object"
    return DeepSpeed({}, str(path), at, problem)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} is given twice in one object; keep one")
    return content


def settings(
    content: Mapping[str, Any], precision: Precision, hidden_size: int | None
) -> dict[str, Any]:
    """What DeepSpeed is started with: `content` where the rules found no conflict, completed.

    `hidden_size` gives the bucket sizes that are "auto"; None, of a model that has no single one,
    leaves them at DeepSpeed's defaults. Window, clipping and learning rate are told step by step.
    """
    kept = _decided(content)
    for block in ("train_batch_size", "scheduler"):
        kept.pop(block, None)
    zero = kept.setdefault("zero_optimization", {})
    zero.setdefault("stage", 0)
    for name, size in BUCKETS.items():
        if value_at(content, f"zero_optimization.{name}") == AUTO and hidden_size is not None:
            zero[name] = size(hidden_size)
    # The only values that these may have are AdamW's own; not every Adam takes them as arguments.
    for name in [key.removeprefix(PARAMS) for key in FIXED if key.startswith(PARAMS)]:
        kept.get("optimizer", {}).get("params", {}).pop(name, None)
    for compute in ("fp16", "bf16"):
        kept[compute] = {**kept.get(compute, {}), "enabled": precision.compute == compute}
    if precision.compute in ("fp16", "bf16"):
        # Gradients travel and add up in fp32: DeepSpeed's default is the model's own format.
        kept["data_types"] = {"grad_accum_dtype": precision.accumulate}
        kept.setdefault("communication_data_type", "fp32")
    return kept | {
        "train_micro_batch_size_per_gpu": 1,
        # Windows differ in length: where one ends is told, not counted.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": kept.get("steps_per_print", 2**31),
        # Any torch optimizer works on flat partitions, offloaded ones too; DeepSpeed would take
        # only some by name.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _decided(content: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without null and "auto", which leave DeepSpeed its default."""
    return {
        key: _decided(value) if isinstance(value, Mapping) else value
        for key, value in content.items()
        if value not in (None, AUTO)
    }


def value_at(content: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    value: Any = content
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
