"""Mixtures of experts: what PEFT trains on fused parameters is merged into the tensors that the checkpoint holds."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from mft_merge.verification import verify

pytestmark = pytest.mark.whole

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = {"shared_expert_intermediate_size": 24}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
pytest.importorskip("transformers.core_model_loading", reason="mapping names needs transformers 5")
BOTH = ["experts.gate_up_proj", "experts.down_proj"]
FAMILIES = {
    "mixtral": ("mixtral", {"num_local_experts": 4}, {"target_modules": "all-linear"}),
    "square": ("mixtral", {"num_local_experts": 4, "intermediate_size": 16}, {"target_modules": "all-linear"}),
    "one parameter": ("mixtral", {"num_local_experts": 4}, {"target_parameters": ["experts.down_proj"]}),
    "qwen2_moe": ("qwen2_moe", EXPERTS | SHARED, {"target_parameters": BOTH, "use_rslora": True}),
    "qwen3_moe": ("qwen3_moe", EXPERTS | {"head_dim": 8}, {"target_modules": "all-linear"}),
    "qwen3_next": ("qwen3_next", EXPERTS | SHARED | LINEAR | {"head_dim": 16}, {"target_modules": "all-linear"}),
    "deepseek_v3": (
        "deepseek_v3",
        ROUTED | LATENT | {"num_experts_per_tok": 2, "moe_intermediate_size": 24},
        {"target_modules": "all-linear"},
    ),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}, {"target_parameters": BOTH}),
    "gpt_oss, square": (
        "gpt_oss",
        {"num_local_experts": 4, "head_dim": 8, "intermediate_size": 32},
        {"target_parameters": BOTH},
    ),
    "patterns": (
        "qwen3_moe",
        EXPERTS | {"head_dim": 8},
        {
            "target_parameters": BOTH,
            "rank_pattern": {r".*\.0\..*gate_up_proj": 3},
            "alpha_pattern": {"experts.down_proj": 5},
        },
    ),
}


@pytest.fixture
def make_base(tmp_path):
    """make_base(model type, options) is the directory of a random model whose biases are random, too."""

    def make(kind: str, options: dict):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **(SIZES | options))
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return make


def assert_same_model(merged, expected) -> None:
    tensors, expected_tensors = merged.state_dict(), expected.state_dict()
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected_tensors[name], rtol=0, atol=1e-6, msg=lambda t, n=name: n + t)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_experts_equal_pefts(family, make_base, make_adapter, load_adapted, load, run_merge, tmp_path):
    kind, options, lora = FAMILIES[family]
    base = make_base(kind, options)
    adapter = make_adapter(base, tmp_path / "adapter", **({"target_modules": ["q_proj", "o_proj"]} | lora))
    result = run_merge(adapter, tmp_path / "merged")
    assert result.exit_code == 0, result.output
    assert_same_model(load(tmp_path / "merged"), load_adapted(base, adapter).merge_and_unload())
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    experts = [name for name in before if "experts" in name and "shared" not in name and "bias" not in name]
    changed = [name for name in experts if not torch.equal(before[name], after[name])]
    assert len(changed) == (len(experts) // 3 if family == "one parameter" else len(experts))


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "qwen3_next", "gpt_oss"])
def test_updates_of_experts_are_verified_from_the_disk(
    family, make_base, make_adapter, run_merge, tmp_path, monkeypatch
):
    model_type, sizes, options = FAMILIES[family]
    base = make_base(model_type, sizes)
    adapter = make_adapter(base, tmp_path / "adapter", **({"target_modules": []} | options))
    monkeypatch.setattr(verify, "FORWARD_SHARE", 1e12)
    result = run_merge(adapter, tmp_path / "out", "--verify", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["verification"]
    assert figures["is_from_disk"]
    # Recurrent layers make of the last bit of a weight up to a hundred times as much.
    assert figures["relative_difference"] <= (5e-5 if family == "qwen3_next" else 1e-5)


def test_saved_modules_of_renamed_parameters_find_their_place(
    make_base, make_adapter, load_adapted, load, run_merge, tmp_path
):
    base = make_base("mixtral", {"num_local_experts": 4})
    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["gate", "norm"])
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    assert_same_model(load(tmp_path / "merged"), load_adapted(base, adapter).merge_and_unload())


def test_a_checkpoint_without_the_models_prefix_is_mapped(
    make_adapter, load_adapted, load, run_merge, base_dir, tmp_path
):
    base = tmp_path / "base"
    base.mkdir()
    for path in base_dir("gpt2").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    tensors = load_file(base / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == bare.keys()
    assert_same_model(load(tmp_path / "merged"), load_adapted(base, adapter).merge_and_unload())


@pytest.mark.parametrize("version", ["0.19.1", None])
def test_square_experts_of_an_unclear_peft_are_refused(version, make_base, make_adapter, run_merge, tmp_path):
    base = make_base("mixtral", {"num_local_experts": 4, "intermediate_size": 16})
    adapter = make_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_version": version}))
    result = run_merge(adapter, tmp_path / "merged")
    assert result.exit_code == 1
    assert "experts.gate_up_proj" in result.stderr
    assert "is square" in result.stderr


def test_factors_for_more_parameters_than_are_targeted_are_refused(make_base, make_adapter, run_merge, tmp_path):
    base = make_base("mixtral", {"num_local_experts": 4})
    adapter = make_adapter(base, tmp_path / "adapter", target_parameters=BOTH)
    config = json.loads((adapter / "adapter_config.json").read_text())
    changed = config | {"target_parameters": ["experts.down_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(changed))
    result = run_merge(adapter, tmp_path / "merged")
    assert result.exit_code == 1
    assert 'mlp.experts" has 2 pairs of factors for 1 targeted' in result.stderr


def test_the_language_part_of_a_multimodal_model_is_merged(make_adapter, load_adapted, load, run_merge, tmp_path):
    """Gemma 3 stores `language_model.model.layers...`, which the live model has as `model.language_model...`."""
    text = SIZES | {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    options = {"image_size": 32, "patch_size": 8}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision | options, mm_tokens_per_image=4, image_token_index=5
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(tmp_path / "base")
    targets = r".*language_model.*\.(q_proj|down_proj)"
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=targets)
    result = run_merge(adapter, tmp_path / "merged")
    assert result.exit_code == 0, result.output
    assert_same_model(load(tmp_path / "merged"), load_adapted(tmp_path / "base", adapter).merge_and_unload())
    assert not torch.equal(
        load(tmp_path / "merged").state_dict()["model.language_model.layers.0.self_attn.q_proj.weight"],
        load(tmp_path / "base").state_dict()["model.language_model.layers.0.self_attn.q_proj.weight"],
    )


def test_the_language_part_of_qwen2_5_vl_is_merged(run_merge, tmp_path):
    """It stores `model.layers...`, which the live model has as `model.language_model.layers...`."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "depth": 1, "out_hidden_size": 32}
    config = AutoConfig.for_model("qwen2_5_vl", text_config=SIZES | {"rope_parameters": rope}, vision_config=vision)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    model.save_pretrained(tmp_path / "base")
    targets = r".*language_model.*\.(q_proj|down_proj)"
    lora = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    result = run_merge(tmp_path / "adapter", tmp_path / "merged", "--base", tmp_path / "base")
    assert result.exit_code == 0, result.output
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", trust_remote_code=False)
    assert_same_model(merged, adapted.merge_and_unload())
    changed = json.loads((tmp_path / "merged" / "merge.json").read_text())["tensors"]
    assert len(changed) == 4


@pytest.mark.parametrize("intermediate_size", [48, 16], ids=["oblong", "square"])
def test_the_layout_of_peft_0_18_gives_the_same_model(intermediate_size, make_base, make_adapter, run_merge, tmp_path):
    """Up to 0.18 A was over the second dimension of (experts, rows, columns) and B over the third."""
    num_experts = 4
    base = make_base("mixtral", {"num_local_experts": num_experts, "intermediate_size": intermediate_size})
    adapter = make_adapter(base, tmp_path / "adapter", target_parameters=BOTH)
    assert run_merge(adapter, tmp_path / "new").exit_code == 0
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in tensors if "experts" in name and "lora_A" in name]:
        a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        by_expert = b.reshape(len(b), -1, num_experts).permute(2, 1, 0)
        tensors[name] = by_expert.reshape(-1, len(b)).contiguous()
        turned = a.reshape(num_experts, -1, a.shape[1]).permute(2, 1, 0)
        tensors[name.replace("lora_A", "lora_B")] = turned.reshape(a.shape[1], -1).contiguous()
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_version": "0.18.1"}))
    result = run_merge(adapter, tmp_path / "old")
    assert result.exit_code == 0, result.output
    new, old = (load_file(tmp_path / name / "model.safetensors") for name in ("new", "old"))
    assert all(torch.equal(new[name], old[name]) for name in new)
