"""Keys of a DeepSpeed JSON: those that can be used here, and those that must keep their default.

DeepSpeed ignores an unknown key at the top in silence and reports one below only once the model
is loaded. The names are those of DeepSpeed 0.19, whose import takes seconds; tests compare them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_OFFLOAD = "device nvme_path buffer_count pin_memory "

# By block ("" is the top). What is missing was removed by DeepSpeed, is deprecated there, or would
# change what is computed: other optimizers' parameters, tensor parallelism, data efficiency, ...
USABLE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        block: tuple(names.split())
        for block, names in {
            "": "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps "
            "gradient_clipping optimizer scheduler fp16 bf16 torch_autocast data_types "
            "zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer "
            "communication_data_type prescale_gradients gradient_predivide_factor "
            "gradient_allreduce_op managed_gradient_accumulation disable_allgather "
            "steps_per_print wall_clock_breakdown "
            "memory_breakdown dump_state disable_python_gc log_level timers flops_profiler "
            "comms_logger",
            "optimizer": "type params legacy_fusion",
            "optimizer.params": "lr betas eps weight_decay torch_adam adam_w_mode bias_correction "
            "amsgrad fp32_optimizer_states",
            "scheduler": "type params",
            "scheduler.params": "warmup_min_lr warmup_max_lr warmup_min_ratio cos_min_ratio "
            "warmup_num_steps warmup_type total_num_steps",
            "torch_autocast": "enabled dtype lower_precision_safe_modules",
            "data_types": "grad_accum_dtype",
            "bf16": "enabled immediate_grad_update check_grad_overflow "
            "bf16_master_weights_and_grads bf16_optimizer_states",
            "fp16": "enabled auto_cast loss_scale initial_scale_power loss_scale_window "
            "hysteresis consecutive_hysteresis min_loss_scale fp16_master_weights_and_grads",
            "zero_optimization": "stage contiguous_gradients reduce_scatter reduce_bucket_size "
            "use_multi_rank_bucket_allreduce allgather_partitions allgather_bucket_size "
            "overlap_comm compute_grad_norm load_from_fp32_weights elastic_checkpoint "
            "offload_param offload_optimizer sub_group_size stage3_prefetch_bucket_size "
            "stage3_param_persistence_threshold stage3_model_persistence_threshold "
            "stage3_max_live_parameters stage3_max_reuse_distance "
            "stage3_gather_16bit_weights_on_model_save stage3_module_granularity_threshold "
            "stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential "
            "ignore_unused_parameters round_robin_gradients parameter_alignment "
            "zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights "
            "zero_quantized_gradients memory_efficient_linear pipeline_loading_checkpoint "
            "override_module_apply log_trace_cache_warnings enable_sanity_checks leaf_module",
            "zero_optimization.offload_param": _OFFLOAD + "buffer_size max_in_cpu",
            "zero_optimization.offload_optimizer": _OFFLOAD + "pipeline_read pipeline_write "
            "fast_init ratio super_offload cpuadam_cores_perc",
        }.items()
    }
)

_ROUNDED = "rounding what ranks exchange would change the result"
_IN_FP32 = "weights, gradients and optimizer state are kept in fp32"
_UNTESTED = "no test shows that it gives the same gradients"
_ADAMW = "it would change what optimizer.name: adamw computes"
_FROM_ZERO = "the learning rate rises linearly from zero"

# The only value that a key may have, and why. All but those of the scheduler are DeepSpeed's own.
FIXED: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "managed_gradient_accumulation": (True, "windows end where DeepSpeed is told"),
        "gradient_allreduce_op": ("mean", "a mean is what the scale of the loss undoes"),
        "torch_autocast.enabled": (False, "the number format is set by precision.compute"),
        "bf16.check_grad_overflow": (True, "else it would step on gradients of NaN"),
        "bf16.bf16_master_weights_and_grads": (False, _IN_FP32),
        "bf16.bf16_optimizer_states": (False, _IN_FP32),
        "fp16.fp16_master_weights_and_grads": (False, _IN_FP32),
        "zero_optimization.compute_grad_norm": (True, "it is clipped by and reported"),
        "zero_optimization.offload_optimizer.super_offload": (False, _UNTESTED),
        "zero_optimization.offload_optimizer.ratio": (1, _UNTESTED),
        "zero_optimization.round_robin_gradients": (
            False,
            "DeepSpeed then gives its gradients out wrong, so they cannot be checked or saved",
        ),
        "zero_optimization.zero_quantized_weights": (False, _ROUNDED),
        "zero_optimization.zero_quantized_nontrainable_weights": (False, _ROUNDED),
        "zero_optimization.zero_quantized_gradients": (False, _ROUNDED),
        "optimizer.params.adam_w_mode": (True, _ADAMW),
        "optimizer.params.bias_correction": (True, _ADAMW),
        "optimizer.params.amsgrad": (False, _ADAMW),
        "optimizer.params.fp32_optimizer_states": (True, _IN_FP32),
        "scheduler.params.warmup_min_lr": (0, _FROM_ZERO),
        "scheduler.params.warmup_min_ratio": (0, _FROM_ZERO),
        "scheduler.params.warmup_type": ("linear", _FROM_ZERO),
    }
)
