"""Names that are accepted in a DeepSpeed JSON are those of the installed DeepSpeed."""

import ast
import re

import pytest
from deepspeed_json import source_of

from gradacc_dist.config.deepspeed_keys import FIXED, USABLE

MODELS = {
    "zero_optimization": ("runtime/zero/config.py", "DeepSpeedZeroConfig"),
    "zero_optimization.offload_param": (
        "runtime/zero/offload_config.py",
        "DeepSpeedZeroOffloadParamConfig",
    ),
    "zero_optimization.offload_optimizer": (
        "runtime/zero/offload_config.py",
        "DeepSpeedZeroOffloadOptimizerConfig",
    ),
    "bf16": ("runtime/precision_config.py", "DeepSpeedBF16Config"),
    "fp16": ("runtime/precision_config.py", "DeepSpeedFP16Config"),
}
# Deprecated, without effect on what is saved here, or changing the optimizer step.
LEFT_OUT = {
    *("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "legacy_stage1"),
    *("stage3_gather_fp16_weights_on_model_save", "save_muon_momentum_buffer_in_memory"),
    "zenflow",
}


@pytest.mark.parametrize("block", MODELS)
def test_names_are_those_of_deepspeed(block):
    path, model = MODELS[block]
    tree = ast.parse(source_of("deepspeed", path))
    (body,) = [node.body for node in tree.body if getattr(node, "name", "") == model]
    names = set()
    for field in body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            keywords = field.value.keywords if isinstance(field.value, ast.Call) else []
            alias = [word.value.value for word in keywords if word.arg == "alias"]
            names.add(alias[0] if alias else field.target.id)
    assert set(USABLE[block]) == names - LEFT_OUT


def test_other_names_are_known_to_deepspeed():
    files = "runtime/constants.py runtime/config.py runtime/lr_schedules.py runtime/engine.py "
    files += "monitor/config.py profiling/constants.py comm/constants.py utils/config.py "
    files += "runtime/swap_tensor/constants.py runtime/activation_checkpointing/config.py "
    files += "ops/adam/cpu_adam.py"
    text = "\n".join(source_of("deepspeed", name) for name in files.split())
    for block, names in USABLE.items():
        for name in names if block not in MODELS else ():
            assert re.search(rf"\b{name}\b", text), (block, name)
    assert set(MODELS) <= set(USABLE)
    for key in FIXED:
        block, _, name = key.rpartition(".")
        assert name in USABLE[block]
