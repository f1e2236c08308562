"""The trained model as a folder that `from_pretrained` loads."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.core_model_loading import revert_weight_conversion

from gradacc_dist.engines import Engine
from gradacc_dist.errors import DiskError
from gradacc_dist.world import World


def save_model(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, folder: Path, world: World
) -> None:
    """Write weights, configuration and tokenizer into `folder`, on rank 0. Collective.

    The folder appears complete or not at all; one of an earlier run is replaced. Raises DiskError.
    """
    weights = engine.state_dict()
    if world.is_main:
        making = folder.with_name(folder.name + ".making")
        with DiskError.naming(folder):
            shutil.rmtree(making, ignore_errors=True)
            write_pretrained(engine.module.model, weights, making)
            tokenizer.save_pretrained(making)
            shutil.rmtree(folder, ignore_errors=True)
            making.rename(folder)
    world.barrier()


def write_pretrained(model: PreTrainedModel, weights: dict[str, Tensor], folder: Path) -> None:
    """What `model.save_pretrained` writes, for weights gathered elsewhere.

    Not by save_pretrained itself: that imports DeepSpeed wherever it is installed, and a broken
    installation would lose the result of a run that never chose it.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = next(iter(weights.values())).dtype
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    # Names and shapes on disk can differ from those in memory (fused experts, say).
    save_torch_state_dict(revert_weight_conversion(model, weights), folder)


def continuation(folder: Path, prompt_ids: list[int], max_new_tokens: int) -> str:
    """What the exported model writes after `prompt_ids`, choosing the likeliest token each time.

    Loads the folder as any user would, so it also shows that the export works.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    input_ids = torch.tensor([prompt_ids])
    attention_mask = torch.ones_like(input_ids)
    with torch.no_grad():
        written: Tensor = model.generate(
            input_ids,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    return tokenizer.decode(written[0, input_ids.shape[1] :], skip_special_tokens=True)
