"""A tiny tokenizer, tiny random models and an adapter over one of them, all written by the real libraries."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from mft_infer.cli import main
from mft_infer.model.language_model import LanguageModel, load_language_model
from mft_infer.settings import ModelSettings

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

TEXTS = ["def add(a, b):\n    return a + b\n", "the quick brown fox jumps over the lazy dog. " * 3, "é à ü 你好 🙂"]
CONTEXT_LENGTH = 96
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ {'user': 'human', 'assistant': 'bot'}.get(message['role'], message['role']) }}"
    "{{ '\\n' + message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<s>bot{{ '\\n' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with merges; its EOS is <|end|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>", "<|turn|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=CHAT_TEMPLATE)
    fast.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    return fast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tokenizer) -> Path:
    """A random Llama whose greedy answers vary, with its tokenizer and template."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.4,
    )
    directory = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def big_cache_model(tmp_path_factory, tokenizer) -> Path:
    """A random Llama with a cache of 64 KiB a token, which does not come to an end by itself."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        head_dim=256,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.4,
    )
    directory = tmp_path_factory.mktemp("big")
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.all_special_ids] = 0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def adapter_dir(tmp_path_factory, model_dir, tokenizer) -> Path:
    """A random LoRA adapter over `model_dir`, with the tokenizer beside it."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    directory = tmp_path_factory.mktemp("adapter")
    get_peft_model(base, config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def language_model(model_dir) -> LanguageModel:
    return load_language_model(str(model_dir), ModelSettings(device="cpu"))


@pytest.fixture(scope="session")
def run_infer() -> Callable[..., Result]:
    """run_infer(*arguments, input=...) is the result of the command in this process."""

    def run(*arguments: object, input: str | bytes | None = None) -> Result:  # noqa: A002
        return CliRunner().invoke(main, [str(argument) for argument in arguments], input=input, prog_name="mft-infer")

    return run


@pytest.fixture
def write_prompts(tmp_path) -> Callable[..., Path]:
    """write_prompts(entries) is a prompts file of these objects."""

    def write(entries: list[dict]) -> Path:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
        return path

    return write


@pytest.fixture
def complete(run_infer, model_dir, write_prompts, tmp_path):
    """complete(entries, *options) are the generations of these prompts."""

    def run(entries, *options, model=model_dir) -> list[dict]:
        out = tmp_path / "out.jsonl"
        result = run_infer("generate", model, write_prompts(entries), out, "--overwrite", *options)
        assert result.exit_code == 0, result.output
        assert result.stdout == ""
        return [json.loads(line) for line in out.read_text("utf-8").splitlines()]

    return run


@pytest.fixture
def damaged(model_dir, tmp_path):
    """A copy of the model directory that a test may damage."""
    directory = tmp_path / "model"
    directory.mkdir()
    for path in model_dir.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory
