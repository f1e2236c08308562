"""Which engine runs: decided from the configuration, the launcher's environment and the ranks."""

import pytest
from test_rules import FSDP2, messages

from gradacc_dist.config.engine import Sharding, choose_engine
from gradacc_dist.config.schema import Engine

# What accelerate launch writes of FSDP when nobody set more than the version.
DEFAULTS = {
    **FSDP2,
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
}
PLAIN = Sharding(replicas=1, wrap=None, reshard_after_forward=True, offload=False)


@pytest.mark.parametrize(
    ("name", "environ", "ranks", "chosen", "reason"),
    [
        ("auto", {}, 1, "single", "one rank"),
        ("auto", {}, 4, "ddp", "4 ranks"),
        ("auto", FSDP2, 4, "fsdp2", "accelerate launch asks for FSDP"),
        ("auto", FSDP2, 1, "fsdp2", "accelerate launch asks for FSDP"),
        ("fsdp2", {}, 4, "fsdp2", "engine.name asks"),
        ("ddp", {}, 4, "ddp", "engine.name asks"),
    ],
)
def test_the_engine_and_why(name, environ, ranks, chosen, reason):
    choice = choose_engine(Engine(name=name), environ, ranks)
    assert choice.name == chosen
    assert reason in choice.reason
    assert choice.sharding == PLAIN


@pytest.mark.parametrize(
    ("name", "reduce", "once"),
    [
        ("ddp", "auto", True),
        ("fsdp2", "auto", False),
        ("ddp", "micro_batch", False),
        ("fsdp2", "window", True),
    ],
)
def test_when_gradients_travel(name, reduce, once):
    assert choose_engine(Engine(name=name, reduce=reduce), {}, 2).reduces_once == once


def test_accelerates_settings_are_taken():
    environ = {
        **DEFAULTS,
        "FSDP_RESHARD_AFTER_FORWARD": "false",
        "FSDP_OFFLOAD_PARAMS": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer, LlamaMLP",
        "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    }
    assert choose_engine(Engine(), environ, 4).sharding == Sharding(
        2, ("LlamaDecoderLayer", "LlamaMLP"), reshard_after_forward=False, offload=True
    )
    unwrapped = {**DEFAULTS, "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}
    assert choose_engine(Engine(), unwrapped, 4).sharding.wrap == ()


def test_accelerates_defaults_ask_for_nothing():
    assert choose_engine(Engine(), DEFAULTS, 2).sharding == PLAIN
    ours = Engine(replicas=2, wrap=(), reshard_after_forward=False, offload=True)
    assert choose_engine(ours, DEFAULTS, 2).sharding == Sharding(2, (), False, True)
    assert messages({**DEFAULTS, "WORLD_SIZE": "2"}, engine=ours.model_dump()) == []


def test_both_say_something_else():
    """Contract 10: both values and the remedy."""
    environ = {**DEFAULTS, "FSDP_OFFLOAD_PARAMS": "true"}
    (message,) = messages(environ, engine={"offload": False})
    assert "asks for true, but engine.offload: false (at engine.offload)" in message
    assert "set engine.offload to null" in message
    assert messages(environ, engine={"offload": True}) == []
