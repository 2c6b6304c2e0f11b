"""Tiny random base models, a tokenizer with a chat template, and adapters written by the real PEFT."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from mft_merge.cli import main

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

VOCAB_SIZE = 258
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if message['role'] == 'bot' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>bot\n{% endif %}"
)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(vocab_size=VOCAB_SIZE, num_hidden_layers=2, eos_token_id=2, **SIZES),
    "tied": lambda: LlamaConfig(
        vocab_size=VOCAB_SIZE, num_hidden_layers=2, eos_token_id=2, tie_word_embeddings=True, **SIZES
    ),
    "qwen2": lambda: Qwen2Config(vocab_size=VOCAB_SIZE, num_hidden_layers=2, **SIZES),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    ),
}


def make_tokenizer(eos_token: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the 256 bytes; `eos_token` is id 256 and <s> is id 257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([eos_token, "<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos_token, chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory) -> Callable[..., Path]:
    """base_dir(kind, shard_size, dtype) is the directory of a tiny base model, made once."""
    made: dict[tuple, Path] = {}

    def make(kind: str, *, shard_size: str = "5GB", dtype: torch.dtype = torch.float32) -> Path:
        key = (kind, shard_size, dtype)
        if key not in made:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(CONFIGS[kind]()).to(dtype)
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(parameter)
            made[key] = tmp_path_factory.mktemp("base")
            model.save_pretrained(made[key], max_shard_size=shard_size)
            make_tokenizer("<|base_end|>").save_pretrained(made[key])
        return made[key]

    return make


def load_model(model_dir: Path) -> PreTrainedModel:
    """The model in a directory, as stored."""
    return AutoModelForCausalLM.from_pretrained(model_dir)


def random_adapter(
    base: Path, adapter_dir: Path, *, vocab_size: int | None = None, zero: bool = False, seed: int = 1, **options
) -> Path:
    """A random LoRA adapter over `base`; every value that PEFT saves is random, or the update is zero."""
    model = load_model(base)
    if vocab_size:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **options}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
            elif parameter.requires_grad:
                parameter.normal_(std=0.3)
            if zero and ("lora_B" in name or "lora_embedding_A" in name):
                parameter.zero_()
    adapted.save_pretrained(adapter_dir)
    make_tokenizer("<|adapter_end|>").save_pretrained(adapter_dir)
    return adapter_dir


def load_adapted_model(base: Path, adapter_dir: Path, *, vocab_size: int | None = None) -> PeftModel:
    """PEFT's own model of base and adapter."""
    model = load_model(base)
    if vocab_size:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    return PeftModel.from_pretrained(model, adapter_dir)


def invoke(*arguments: object) -> Result:
    """The result of the command with these arguments, in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="mft-merge")


@pytest.fixture(scope="session")
def load() -> Callable[..., PreTrainedModel]:
    return load_model


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    return random_adapter


@pytest.fixture(scope="session")
def load_adapted() -> Callable[..., PeftModel]:
    return load_adapted_model


@pytest.fixture(scope="session")
def run_merge() -> Callable[..., Result]:
    return invoke
