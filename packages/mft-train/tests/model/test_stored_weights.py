"""What a rank reads of its share is what transformers loads, number for number; else it is left to rank 0."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from mft_train.config.config import RunConfig
from mft_train.model import segment_attention
from mft_train.model.base_weights import weight_names
from mft_train.model.compute import settle_compute
from mft_train.model.load import hollow_base, load_base
from mft_train.model.stored_weights import find_stored, forget_sources, has_sources, set_sources, source_of

segment_attention.register()

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
# Biases, tied embeddings, norms of heads, transposed weights, fused experts as they are, tables made for a type.
READ = ("llama", "qwen2", "qwen3", "gemma2", "gpt2", "starcoder2", "phi3", "gpt_oss", "codegen", "mamba")
EXPERTS = {"num_local_experts": 4}
JOINED = {"mixtral": EXPERTS, "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16}}


def make(path, family, **more):
    torch.manual_seed(1)
    experts = EXPERTS if family == "gpt_oss" else {}
    shape = AutoConfig.for_model(family, **SIZES, **HEADS, **IDS, **experts, **more)
    AutoModelForCausalLM.from_config(shape).save_pretrained(path, max_shard_size="40kB")
    return path


def config_of(path, **settings):
    return RunConfig(model=str(path), dataset="d", output="o", max_steps=1, **settings)


def hollow(config, dtype=torch.float32):
    model = hollow_base(config, settle_compute(config, torch.device("cpu")), dtype)
    set_sources(model, find_stored(model, config, config.model))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", READ)
def test_a_model_read_in_shares_is_the_one_that_transformers_loads(tmp_path, family, dtype):
    config = config_of(make(tmp_path / "base", family))
    real = load_base(config, settle_compute(config, torch.device("cpu")), dtype, None)
    model = hollow(config, dtype)
    assert {name: p.dtype for name, p in model.named_parameters()} == {n: p.dtype for n, p in real.named_parameters()}
    for name, weight in model.named_parameters():
        share = torch.empty(weight.numel(), dtype=weight.dtype)
        for start in range(0, weight.numel(), 37):  # begins and ends within rows
            numbers = range(start, min(start + 37, weight.numel()))
            source_of(weight).fill(share[start : numbers.stop], numbers)
        assert share.equal(real.get_parameter(name).flatten()), name
    for name, buffer in real.named_buffers():
        assert model.get_buffer(name).equal(buffer), name
    assert model.generation_config.to_dict() == real.generation_config.to_dict()


def test_saved_buffers_are_read_at_once(tmp_path):
    config = config_of(make(tmp_path / "base", "llama"))
    model = hollow_base(config, settle_compute(config, torch.device("cpu")), torch.float32)
    model.model.register_buffer("counts", torch.zeros(3))
    assert not find_stored(model, config, config.model), "it is not in the files"
    tensors = {name: tensor for path in weight_files(config.model) for name, tensor in load_file(path).items()}
    one_file(tmp_path / "with", config.model, tensors | {"model.counts": torch.arange(3.0)})
    set_sources(model, find_stored(model, config, str(tmp_path / "with")))
    assert model.model.counts.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("family", JOINED)
def test_experts_that_transformers_joins_are_left_to_rank_0(tmp_path, family):
    assert not has_sources(hollow(config_of(make(tmp_path / "base", family, **JOINED[family]))))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora", "lora": {"dora": True}},
        {"method": "lora", "lora": {"modules_to_save": ["embed_tokens"]}},
        {"method": "lora", "lora": {"init": "pissa"}},
        {"method": "full", "trust_remote_code": True},
    ],
)
def test_what_needs_whole_weights_is_left_to_rank_0(tiny_model, settings):
    assert has_sources(hollow(config_of(tiny_model, method="lora")))
    assert not has_sources(hollow(config_of(tiny_model, **settings)))


def test_weights_in_another_form_are_left_to_rank_0(tmp_path):
    base = make(tmp_path / "base", "llama", tie_word_embeddings=True)
    tensors = {name: tensor for path in weight_files(base) for name, tensor in load_file(path).items()}
    embedding = tensors["model.embed_tokens.weight"]
    forms = {
        "a weight under both names": tensors | {"lm_head.weight": embedding.clone()},
        "another shape": tensors | {"model.embed_tokens.weight": embedding[:-1].clone()},
        "a weight less": {name: tensor for name, tensor in tensors.items() if "q_proj" not in name},
        "other names": {f"old.{name}": tensor for name, tensor in tensors.items()},
    }
    config = config_of(base)
    model = hollow(config)
    assert has_sources(model)
    for number, (form, other) in enumerate(forms.items()):
        one_file(tmp_path / str(number), base, other)
        assert not find_stored(model, config, str(tmp_path / str(number))), form
    (tmp_path / "empty").mkdir()
    assert not find_stored(model, config, str(tmp_path / "empty"))
    forget_sources(model)
    assert not has_sources(model)


def weight_files(model):
    return [Path(model, name) for name in weight_names(Path(model))]


def one_file(path, base, tensors):
    path.mkdir()
    shutil.copy(f"{base}/config.json", path)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
