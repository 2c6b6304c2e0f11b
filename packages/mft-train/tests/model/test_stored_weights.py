"""What a rank reads of its share is what transformers loads, number for number; else it is left to rank 0."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.model import segment_attention
from mft_train.model.base_weights import weight_names
from mft_train.model.compute import settle_compute
from mft_train.model.load import hollow_base, load_base
from mft_train.model.stored_names import joined_order
from mft_train.model.stored_weights import find_stored, forget_sources, has_sources, set_sources, source_of

segment_attention.register()

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
# Biases, norms of heads, transposed weights, tables made for a type; then experts as they are, twelve to join, a head
# with another name in files; dense layers before others, saved buffers, some of both in float32.
PLAIN = ("llama", "qwen2", "qwen3", "gemma2", "gpt2", "starcoder2", "phi3", "codegen", "mamba")
FAMILIES = {family: {} for family in PLAIN} | {
    "gpt_oss": {"num_local_experts": 4},
    "mixtral": {"num_local_experts": 12},
    "gpt_neox": {},
}
FAMILIES |= {"qwen3_moe": {"num_experts": 12} | MOE, "glm4_moe": ROUTED | MOE, "dots1": ROUTED | MOE}


def make(path, family, **more):
    torch.manual_seed(1)
    shape = AutoConfig.for_model(family, **SIZES, **HEADS, **IDS, **FAMILIES[family], **more)
    AutoModelForCausalLM.from_config(shape).save_pretrained(path, max_shard_size="40kB")
    return path


def config_of(path, **settings):
    return RunConfig(model=str(path), dataset="d", output="o", max_steps=1, **settings)


def hollow(config, dtype=torch.float32):
    model = hollow_base(config, settle_compute(config, torch.device("cpu")), dtype)
    set_sources(model, find_stored(model, config, config.model))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
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


def test_experts_follow_each_other_by_number(tmp_path):
    path = make(tmp_path / "base", "mixtral")
    model = hollow(config_of(path))
    experts = source_of(model.model.layers[0].mlp.experts.gate_up_proj)
    assert len(experts.parts) == 24
    stored = {name: tensor for file in weight_files(path) for name, tensor in load_file(file).items()}
    names = [f"model.layers.0.block_sparse_moe.experts.{n}.{w}.weight" for n in range(12) for w in ("w1", "w3")]
    whole = torch.cat([stored[name].flatten() for name in names])
    share = torch.empty(1000)
    experts.fill(share, range(3000, 4000))
    assert share.equal(whole[3000:4000])


def test_only_tensors_that_are_joined_end_to_end_follow_each_other():
    """Rules as transformers has them: kinds of steps, and what they make of which names."""
    from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter

    named = {"gate": ["gate.0", "gate.1"], "up": ["up.0", "up.1"]}
    rule = WeightConverter(["gate", "up"], ["gate_up"], [MergeModulelist(dim=0), Concatenate(dim=1)])
    assert joined_order(rule, named) == ["gate.0", "up.0", "gate.1", "up.1"]
    assert joined_order(rule, named | {"up": ["up.0"]}) is None
    assert joined_order(rule, {"gate": named["gate"]}) is None
    rule = WeightConverter(["gate", "up"], ["gate_up"], [Concatenate(dim=0)])
    assert joined_order(rule, named) == ["gate.0", "gate.1", "up.0", "up.1"]
    for steps in ([Concatenate(dim=1)], [Transpose(0, 1)], [MergeModulelist(dim=1), Concatenate(dim=1)]):
        assert joined_order(WeightConverter(["gate", "up"], ["gate_up"], steps), named) is None


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
        "another type": tensors | {"model.norm.weight": tensors["model.norm.weight"].double()},
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


def test_a_file_that_is_cut_short_is_found(tmp_path):
    path = make(tmp_path / "base", "llama")
    model = hollow(config_of(path))
    file = max(weight_files(path))
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 4)
    assert not has_sources(hollow(config_of(path))), "transformers tells it in rank 0"
    last = model.model.norm.weight
    with pytest.raises(TrainError, match="cut short"):
        source_of(last).fill(last.data, range(last.numel()))


def weight_files(model):
    return [Path(model, name) for name in weight_names(Path(model))]


def one_file(path, base, tensors):
    path.mkdir()
    shutil.copy(f"{base}/config.json", path)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
