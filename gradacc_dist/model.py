"""The model a run starts from: pretrained weights, or a configuration and a seed."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gradacc_dist.config.schema import Model, Precision
from gradacc_dist.errors import ConfigError


def build_model(
    config: Model, precision: Precision, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """A causal language model on the CPU, in training mode; the same weights on every rank.

    Raises ConfigError for a configuration or folder that transformers cannot use.
    """
    if config.path:
        model = _pretrained(config.path, seed)
    else:
        model = _from_scratch(config, tokenizer, seed)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens but the model embeds only {rows}; use the "
            "tokenizer the model was made for, or set model.config.vocab_size to "
            f"{len(tokenizer)} or leave it out"
        )
    _refuse_dependence_on_layout(model.config)
    # Arithmetic in lower precision keeps the weights in float32.
    return model.to(torch.float64 if precision.compute == "fp64" else torch.float32).train()


def check_positions(model: PreTrainedModel, longest: int) -> None:
    """Refuse examples longer than the model has positions. `longest`: tokens of the longest."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise ConfigError(
            f"examples have up to {longest} tokens but the model has {positions} positions "
            f"(max_position_embeddings); set data.max_length to at most {positions}"
        )


def dropout_of(model: PreTrainedModel) -> float:
    """The largest dropout probability in use; 0 for none."""
    modules = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    fields = model.config.to_dict()
    named = [v for k, v in fields.items() if k.endswith(("dropout", "pdrop")) and v is not None]
    return max([float(value) for value in [*modules, *named]], default=0.0)


def _refuse_dependence_on_layout(config: PretrainedConfig) -> None:
    """Settings under which what a token sees depends on which examples share its micro-batch."""
    fields = config.to_dict()
    rope = (fields.get("rope_parameters") or {}).get("rope_type")
    if rope in ("dynamic", "longrope"):
        raise ConfigError(
            f"model: rope_type {rope!r} turns positions by the length of the padded micro-batch, "
            "so gradients would depend on the layout; use default, linear, yarn or llama3"
        )
    dropped = {k: v for k, v in fields.items() if k.endswith("layerdrop") and v}
    if dropped:
        raise ConfigError(
            f"model: {', '.join(f'{k}: {v}' for k, v in dropped.items())} leaves out other layers "
            "on each rank, whose gradients then cannot be summed; set it to 0"
        )


def _pretrained(path: str, seed: int) -> Any:
    # For parameters that the weights lack; those are refused below, but not before they are made.
    torch.manual_seed(seed)
    try:
        # Weights start in float32 whatever they were saved in: updates are lost in less.
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path: {path!r} cannot be loaded as a causal language model: "
            f"{str(error).splitlines()[0]}; give a folder written by save_pretrained or a hub name"
        ) from error
    if info["missing_keys"]:
        raise ConfigError(
            f"model.path: {path!r} lacks the weights of {', '.join(sorted(info['missing_keys']))}: "
            "it was saved for another task; save it as a causal language model first"
        )
    return model


def _from_scratch(config: Model, tokenizer: PreTrainedTokenizerBase, seed: int) -> Any:
    settings = _configuration(dict(config.config or {}), tokenizer)
    torch.manual_seed(seed)
    try:
        return AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    except ValueError as error:
        raise ConfigError(
            f"model.config: transformers has no causal language model for it: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _configuration(fields: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    model_type = fields.pop("model_type")
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        settings = AutoConfig.for_model(model_type, **{**tokens, **fields})
    except (ValueError, TypeError, StrictDataclassError) as error:
        # The last line holds the cause where one error wraps another.
        raise ConfigError(f"model.config: {str(error).strip().splitlines()[-1].strip()}") from error
    plain = AutoConfig.for_model(model_type)
    known = {**plain.to_dict(), **plain.attribute_map}
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ConfigError(
            f"model.config: {model_type} has no field {', '.join(unknown)}; its fields are "
            + ", ".join(sorted(known))
        )
    return settings
