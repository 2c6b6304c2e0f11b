"""The merged weights are those of PEFT's own merge, and what the adapter leaves alone keeps its bytes."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.whole

TOKENS = torch.arange(3, 40)[None]
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "plain": ("llama", {}),
    "all linear layers": ("llama", {"target_modules": ALL_LINEAR}),
    "rslora": ("llama", {"use_rslora": True}),
    "dora": ("llama", {"use_dora": True, "target_modules": ALL_LINEAR}),
    "patterns": (
        "llama",
        {
            "target_modules": ALL_LINEAR,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 8, r"layers\.1\..*_proj": 3},
            "alpha_pattern": {"^model.layers.1.mlp.up_proj": 1, "proj": 5},
            "use_rslora": True,
        },
    ),
    "modules to save": ("llama", {"modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"]}),
    "tied": ("tied", {}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "dora on the embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "tied and both saved": ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied and embedding saved": ("tied", {"modules_to_save": ["embed_tokens"]}),
    "tied and head saved": ("tied", {"modules_to_save": ["lm_head"]}),
    "kept tied, saved": ("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "biases": ("qwen2", {"bias": "all"}),
    "biases of the targets": ("qwen2", {"bias": "lora_only", "target_modules": ["q_proj", "v_proj"]}),
    "biases of the updates": ("qwen2", {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}),
    "trained tokens": ("llama", {"trainable_token_indices": [3, 200]}),
    "trained tokens of either side": (
        "llama",
        {"trainable_token_indices": {"embed_tokens": [200, 3], "lm_head": [7]}},
    ),
    "tied and trained tokens": ("tied", {"trainable_token_indices": [3, 200]}),
    "some layers": ("llama", {"layers_to_transform": [1], "target_modules": ALL_LINEAR}),
    "a regular expression": ("llama", {"target_modules": r".*layers\.0\..*(q|down)_proj"}),
    "transposed layers": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "transposed layers with dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "embedding of transposed layers": ("gpt2", {"target_modules": ["c_proj"], "modules_to_save": ["wte"]}),
}


def stored_tensors(model_dir) -> dict[str, torch.Tensor]:
    """Every tensor in the safetensors files of a directory."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(model_dir.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def logits(model: torch.nn.Module) -> torch.Tensor:
    """The logits over a fixed sequence of tokens."""
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_equal_pefts(case, base_dir, make_adapter, load_adapted, load, run_merge, tmp_path):
    kind, options = CASES[case]
    base = base_dir(kind)
    adapter = make_adapter(base, tmp_path / "adapter", **options)
    result = run_merge(adapter, tmp_path / "merged")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'merged'}\n"
    expected = load_adapted(base, adapter).merge_and_unload()
    merged = load(tmp_path / "merged")
    assert merged.config.tie_word_embeddings == expected.config.tie_word_embeddings
    expected_tensors, tensors = expected.state_dict(), merged.state_dict()
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            tensor, expected_tensors[name], rtol=1e-6, atol=1e-6, msg=lambda text, n=name: n + text
        )
    assert (logits(merged) - logits(load(base))).abs().max() > 0.01


@pytest.mark.parametrize("case", ["all linear layers", "rslora", "embedding", "transposed layers"])
def test_float32_weights_are_pefts_to_the_bit(case, base_dir, make_adapter, load_adapted, load, run_merge, tmp_path):
    kind, options = CASES[case]
    adapter = make_adapter(base_dir(kind), tmp_path / "adapter", **options)
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    expected = load_adapted(base_dir(kind), adapter).merge_and_unload().state_dict()
    for name, tensor in load(tmp_path / "merged").state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_wide_float32_weights_of_many_tiles_are_pefts_to_the_bit(make_adapter, load_adapted, load, run_merge, tmp_path):
    """Tiles have 127 of 256 rows, and the product of the last two alone is rounded otherwise than in the whole."""
    sizes = {"hidden_size": 256, "intermediate_size": 2064, "num_attention_heads": 4, "num_hidden_layers": 1}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path / "base")
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["down_proj", "up_proj"], r=16)
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    expected = load_adapted(tmp_path / "base", adapter).merge_and_unload().state_dict()
    for name, tensor in load(tmp_path / "merged").state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=["embedding", "head", "both", "kept tied"],
)
def test_an_update_of_tied_embeddings_answers_as_the_adapted_model(
    options, base_dir, make_adapter, load_adapted, load, run_merge, tmp_path
):
    """PEFT's own merge adds to the shared weight and so changes both sides; the live model is what was trained."""
    base = base_dir("tied")
    adapter = make_adapter(base, tmp_path / "adapter", **options)
    result = run_merge(adapter, tmp_path / "merged")
    assert result.exit_code == 0, result.output
    merged = load(tmp_path / "merged")
    assert merged.config.tie_word_embeddings is bool(options.get("ensure_weight_tying"))
    torch.testing.assert_close(logits(merged), logits(load_adapted(base, adapter)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_saved_as_the_difference_to_its_initialisation(init, base_dir, load, run_merge, tmp_path):
    """PiSSA and OLoRA train over a changed base; PEFT saves the difference of twice the rank to the base as it was."""
    base = base_dir("llama")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=init)
    adapted = get_peft_model(load(base), config)
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "initial")
    adapted.peft_config["default"].init_lora_weights = init
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    trained = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    result = run_merge(tmp_path / "adapter", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    torch.testing.assert_close(logits(load(tmp_path / "merged")), trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["tied", "llama"])
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}], ids=["plain", "saved"])
def test_a_resized_vocabulary_is_merged(kind, options, base_dir, make_adapter, load_adapted, load, run_merge, tmp_path):
    base = base_dir(kind)
    adapter = make_adapter(base, tmp_path / "adapter", vocab_size=270, **options)
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    merged = load(tmp_path / "merged")
    assert merged.config.vocab_size == 270
    expected = load_adapted(base, adapter, vocab_size=270)
    torch.testing.assert_close(logits(merged), logits(expected), rtol=0, atol=1e-5)


def test_sharded_base_keeps_its_shards_and_index(base_dir, make_adapter, load, run_merge, tmp_path):
    whole, sharded = base_dir("qwen2"), base_dir("qwen2", shard_size="30KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    for name, base in (("whole", whole), ("sharded", sharded)):
        adapter = make_adapter(base, tmp_path / f"adapter-{name}")
        assert run_merge(adapter, tmp_path / name).exit_code == 0
    one, many = stored_tensors(tmp_path / "whole"), stored_tensors(tmp_path / "sharded")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    index_name = "model.safetensors.index.json"
    assert (tmp_path / "sharded" / index_name).read_bytes() == (sharded / index_name).read_bytes()


@pytest.mark.parametrize(("size", "num_shards"), [("5GB", 1), ("60KB", 3), ("1", 27)])
@pytest.mark.parametrize("old_size", ["5GB", "30KB"])
def test_weights_are_cut_anew_by_size(size, num_shards, old_size, base_dir, make_adapter, load, run_merge, tmp_path):
    base = base_dir("qwen2", shard_size=old_size)
    adapter = make_adapter(base, tmp_path / "adapter")
    for name, options in (("plain", []), ("cut", ["--max-shard-size", size])):
        assert run_merge(adapter, tmp_path / name, *options).exit_code == 0
    plain, cut = stored_tensors(tmp_path / "plain"), stored_tensors(tmp_path / "cut")
    assert plain.keys() == cut.keys()
    assert all(torch.equal(plain[name], cut[name]) for name in plain)
    files = list((tmp_path / "cut").glob("*.safetensors"))
    assert len(files) == num_shards
    assert (tmp_path / "cut" / "model.safetensors.index.json").exists() is (num_shards > 1)
    one, other = load(tmp_path / "plain").state_dict(), load(tmp_path / "cut").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_untying_a_sharded_base_adds_the_head_to_the_index(base_dir, make_adapter, load, run_merge, tmp_path):
    base = base_dir("tied", shard_size="30KB")
    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["embed_tokens"])
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    tensors = stored_tensors(tmp_path / "merged")
    assert index["weight_map"].keys() == tensors.keys()
    assert "lm_head.weight" in tensors
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert torch.equal(tensors["lm_head.weight"], stored_tensors(base)["model.embed_tokens.weight"])


def test_untouched_tensors_keep_their_bytes(base_dir, make_adapter, run_merge, tmp_path):
    base = base_dir("llama", dtype=torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    before, after = stored_tensors(base), stored_tensors(tmp_path / "merged")
    assert before.keys() == after.keys()
    changed = {
        name for name in before if not torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))
    }
    assert changed == {name for name in before if "q_proj" in name}


def test_bfloat16_is_rounded_once(base_dir, make_adapter, run_merge, tmp_path):
    base = base_dir("llama", dtype=torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    name = "model.layers.0.self_attn.q_proj"
    factors = load_file(adapter / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{name}.lora_{side}.weight"].float() for side in "AB")
    exact = stored_tensors(base)[f"{name}.weight"].float() + (b @ a) * (6 / 4)
    assert torch.equal(stored_tensors(tmp_path / "merged")[f"{name}.weight"], exact.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtype_converts_every_weight(dtype, base_dir, make_adapter, load, run_merge, tmp_path):
    base = base_dir("llama")
    adapter = make_adapter(base, tmp_path / "adapter")
    assert run_merge(adapter, tmp_path / "merged", "--dtype", dtype).exit_code == 0
    wanted = getattr(torch, dtype)
    assert {tensor.dtype for tensor in stored_tensors(tmp_path / "merged").values()} == {wanted}
    assert load(tmp_path / "merged").dtype == wanted
    source = stored_tensors(base)["model.norm.weight"]
    assert torch.equal(stored_tensors(tmp_path / "merged")["model.norm.weight"], source.to(wanted))


def test_a_zero_adapter_merges_to_the_files_of_the_base(base_dir, make_adapter, run_merge, tmp_path):
    base = base_dir("tied", shard_size="30KB", dtype=torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "adapter", zero=True, target_modules=ALL_LINEAR)
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    for path in [*base.glob("*.safetensors"), *base.glob("*.index.json")]:
        assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()


def test_the_same_merge_gives_the_same_bytes(base_dir, make_adapter, run_merge, tmp_path):
    base = base_dir("tied", shard_size="30KB")
    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["embed_tokens"])
    for name in ("one", "two"):
        assert run_merge(adapter, tmp_path / name).exit_code == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_merged_model_loads_chats_and_stops_at_the_adapters_eos(base_dir, make_adapter, load, run_merge, tmp_path):
    base = base_dir("llama")
    adapter = make_adapter(base, tmp_path / "adapter")
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.eos_token == "<|adapter_end|>"
    text = tokenizer.apply_chat_template(
        [{"role": "human", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<s>human\nhi\n<s>bot\n"
    model = load(tmp_path / "merged")
    assert model.generation_config.eos_token_id == [256, 2]
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["eos_token_id"] == [256, 2]
    model.lm_head.weight.data.zero_()
    model.lm_head.weight.data[256] = 1e3 * model.model(TOKENS).last_hidden_state[0, -1]
    assert model.generate(TOKENS, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, TOKENS.shape[1] :].tolist() == [
        256
    ]
