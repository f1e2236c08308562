"""What `accelerate launch` asks of an engine, as it says it in the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

# What utils/environment.py of accelerate takes for true.
TRUE_WORDS = frozenset({"y", "yes", "t", "true", "on", "1"})
FALSE_WORDS = frozenset({"n", "no", "f", "false", "off", "0"})
LAUNCH = "accelerate launch --multi_gpu --num_processes"

ENGINE_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
        "ACCELERATE_USE_FSDP": "FSDP",
        "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    }
)


@dataclass(frozen=True)
class Wish:
    """A value that the launcher asks for, in `variable`."""

    variable: str
    value: object


def is_on(environ: Mapping[str, str], variable: str) -> bool:
    """Whether a switch of accelerate is on."""
    return environ.get(variable, "").lower() in TRUE_WORDS


def asks_for_fsdp(environ: Mapping[str, str]) -> bool:
    """Whether accelerate was launched with FSDP, of either version."""
    return is_on(environ, "ACCELERATE_USE_FSDP")


def fsdp_wishes(environ: Mapping[str, str]) -> dict[str, Wish]:
    """What accelerate's FSDP settings ask for, by the field of the engine section that says it.

    accelerate writes its defaults whether or not anybody set them, so a default asks for nothing.
    """
    if not asks_for_fsdp(environ):
        return {}
    wishes = {}
    for field, (variable, read) in _FSDP_FIELDS.items():
        value = read(environ.get(variable, ""))
        if value is not None:
            wishes[field] = Wish(variable, value)
    if environ.get("FSDP_AUTO_WRAP_POLICY", "").upper() == "NO_WRAP":
        wishes["wrap"] = Wish("FSDP_AUTO_WRAP_POLICY", ())
    return wishes


def _true(text: str) -> bool | None:
    return True if text.lower() in TRUE_WORDS else None


def _false(text: str) -> bool | None:
    return False if text.lower() in FALSE_WORDS else None


def _names(text: str) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",") if name.strip()) or None


def _several(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) > 1 else None


_FSDP_FIELDS: Mapping[str, tuple[str, Callable[[str], object]]] = MappingProxyType(
    {
        "replicas": ("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", _several),
        "wrap": ("FSDP_TRANSFORMER_CLS_TO_WRAP", _names),
        "reshard_after_forward": ("FSDP_RESHARD_AFTER_FORWARD", _false),
        "offload": ("FSDP_OFFLOAD_PARAMS", _true),
    }
)
