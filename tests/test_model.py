"""Models: the head on supervised positions only, and the folder that a run exports."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from gradacc_dist.checkpoint.export import write_pretrained
from gradacc_dist.config.schema import Model, Precision
from gradacc_dist.data.batch import MicroBatch
from gradacc_dist.errors import ConfigError
from gradacc_dist.model import build_model
from gradacc_dist.objectives.causal_lm import CausalLM

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
WIDE = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS = {
    "llama": {"model_type": "llama", **WIDE},
    "llama tied": {"model_type": "llama", **WIDE, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50},
    "gemma2 (soft-capped logits)": {"model_type": "gemma2", **WIDE, "head_dim": 16},
    "granite (scaled logits)": {"model_type": "granite", **WIDE, "logits_scaling": 8.0},
    "cohere (scaled logits)": {"model_type": "cohere", **WIDE, "logit_scale": 0.1},
    "qwen3": {"model_type": "qwen3", **WIDE, "head_dim": 16},
    "phi (head with bias)": {"model_type": "phi", **WIDE},
}


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models

    vocabulary = {"<eos>": 0} | {f"t{i}": i for i in range(1, 50)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


def build(config: dict, tokenizer, compute: str = "fp64"):
    return build_model(Model(config=config), Precision(compute=compute), tokenizer, seed=1)


def batch() -> MicroBatch:
    ids = torch.randint(1, 50, (3, 11), generator=torch.Generator().manual_seed(0))
    labels = torch.where(
        torch.rand(3, 11, generator=torch.Generator().manual_seed(1)) < 0.4, ids, -100
    )
    mask = torch.ones_like(ids)
    mask[1, 7:], labels[1, 7:], labels[2, 1:] = 0, -100, -100
    return MicroBatch(0, ids, labels, mask, 3, int(mask.sum()))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_narrow_head_gives_the_loss_and_gradients_of_the_whole(name, tokenizer):
    """Soft-capping, scaling, bias and tying are the model's own; float64 shows any slip."""
    model = build(CONFIGS[name], tokenizer).eval()
    narrow = CausalLM().sums(model, batch())["cross_entropy"]
    gradients = torch.autograd.grad(narrow, list(model.parameters()), allow_unused=True)
    tensors = batch()
    logits = model(input_ids=tensors.input_ids, attention_mask=tensors.attention_mask).logits
    assert logits.shape == (3, 11, 50)
    whole = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tensors.labels[:, 1:].flatten(), reduction="sum"
    )
    expected = torch.autograd.grad(whole, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(narrow, whole, rtol=1e-13, atol=0)
    for got, want in zip(gradients, expected, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_a11_a_batch_without_items_reaches_every_parameter_with_zeros(name, tokenizer):
    """Engines wait for each parameter's gradient, filler or not."""
    model = build(CONFIGS[name], tokenizer)
    tensors = batch()
    tensors.labels.fill_(-100)
    total = CausalLM().sums(model, tensors)["cross_entropy"]
    assert float(total.detach()) == 0.0
    for gradient in torch.autograd.grad(total, list(model.parameters())):
        assert not gradient.any()


def test_the_hook_is_gone_afterwards(tokenizer):
    model = build(CONFIGS["llama"], tokenizer)
    CausalLM().sums(model, batch())
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt2"])
def test_the_export_is_what_from_pretrained_loads(name, tokenizer, tmp_path):
    model = build(CONFIGS[name], tokenizer, "fp32")
    write_pretrained(model, model.state_dict(), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value), key


def test_c9_exporting_does_not_import_deepspeed(tmp_path):
    program = (
        "import sys; from transformers import LlamaConfig, LlamaForCausalLM;"
        "from gradacc_dist.checkpoint.export import write_pretrained;"
        "m = LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8,"
        "num_hidden_layers=1, num_attention_heads=1));"
        f"import pathlib; write_pretrained(m, m.state_dict(), pathlib.Path({str(tmp_path)!r}));"
        "assert 'deepspeed' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_same_seed_gives_the_same_weights_in_every_precision(tokenizer):
    small, large = (build(CONFIGS["llama"], tokenizer, compute) for compute in ("fp32", "fp64"))
    for one, other in zip(small.parameters(), large.parameters(), strict=True):
        assert (one.dtype, other.dtype) == (torch.float32, torch.float64)
        assert torch.equal(one.double(), other)


@pytest.mark.parametrize(
    ("config", "fragment"),
    [
        ({"model_type": "lama"}, "lama"),
        ({"model_type": "llama", "hidden_sise": 3}, "llama has no field hidden_sise"),
        ({**CONFIGS["llama"], "vocab_size": 20}, "the tokenizer has 50 tokens but the model"),
        ({**CONFIGS["llama"], "num_attention_heads": 5}, "model.config: "),
        ({"model_type": "t5"}, "no causal language model"),
    ],
)
def test_configurations_that_cannot_be_built_are_told(config, fragment, tokenizer):
    with pytest.raises(ConfigError, match=fragment):
        build(config, tokenizer)


def test_a_folder_without_a_model_is_told(tokenizer, tmp_path):
    model = Model(path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"model\.path: .* cannot be loaded"):
        build_model(model, Precision(), tokenizer, seed=0)
