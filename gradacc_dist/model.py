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
    PreTrainedTokenizerBase,
)

from gradacc_dist.config.schema import Model, Precision
from gradacc_dist.errors import ConfigError

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def build_model(
    config: Model, precision: Precision, tokenizer: PreTrainedTokenizerBase, seed: int
) -> nn.Module:
    """A causal language model on the CPU, in training mode; the same weights on every rank.

    Raises ConfigError for a configuration or folder that transformers cannot use.
    """
    model = _pretrained(config.path) if config.path else _from_scratch(config, tokenizer, seed)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens but the model embeds only {rows}; use the "
            "tokenizer the model was made for, or set model.config.vocab_size to "
            f"{len(tokenizer)} or leave it out"
        )
    return model.to(DTYPES[precision.compute]).train()


def _pretrained(path: str) -> Any:
    try:
        # Weights start in float32 whatever they were saved in: updates are lost in less.
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path: {path!r} cannot be loaded as a causal language model: "
            f"{str(error).splitlines()[0]}; give a folder written by save_pretrained or a hub name"
        ) from error


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
    known = AutoConfig.for_model(model_type).to_dict()
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ConfigError(
            f"model.config: {model_type} has no field {', '.join(unknown)}; its fields are "
            + ", ".join(sorted(known))
        )
    return settings
