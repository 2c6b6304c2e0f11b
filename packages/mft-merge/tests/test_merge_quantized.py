"""An adapter trained over 4-bit weights is merged into what those weights were: bitsandbytes' own dequantisation."""

import json
from itertools import product

import bitsandbytes.functional as functional
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from mft_merge.errors import MergeError
from mft_merge.planning import changes
from mft_merge.sources.adapter import read_adapter
from mft_merge.sources.live_model import LiveModel, Place
from mft_merge.sources.quantization import Quantization
from mft_merge.values import merged_values
from mft_merge.values.dequantized import dequantized, rows_at_a_time

pytestmark = pytest.mark.whole

TOKENS = torch.arange(3, 40)[None]
WAYS = list(product(["nf4", "fp4"], [False, True], ["float32", "bfloat16"]))


def live_model(base, kind, is_double, load_dtype):
    """The base as it is in training: linear layers in 4 bits, float32 otherwise in the computation."""
    way = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=is_double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(
        base,
        quantization_config=way,
        dtype=getattr(torch, load_dtype),
        device_map={"": "cpu"},
        trust_remote_code=False,
    )


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory):
    """A base whose rows are multiples of a block, as bitsandbytes' kernel for CPUs needs them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)).save_pretrained(base)
    return base


@pytest.fixture(params=WAYS, ids=["-".join(map(str, way)) for way in WAYS])
def trained(request, wide_base, make_adapter, tmp_path):
    """(base, adapter, live model, quantisation's document), the adapter with the record of its quantisation."""
    kind, is_double, load_dtype = request.param
    base = wide_base
    adapter = make_adapter(base, tmp_path / "adapter")
    live = live_model(base, kind, is_double, load_dtype)
    names = [name for name, module in live.named_modules() if type(module).__name__ == "Linear4bit"]
    document = {
        "format_version": "1",
        "type": kind,
        "block_size": 64,
        "double_quantization": is_double,
        "load_dtype": load_dtype,
        "modules": names,
    }
    (adapter / "quantization.json").write_text(json.dumps(document))
    return base, adapter, live, document


def weights(live, names) -> dict[str, torch.Tensor]:
    """What bitsandbytes gives back of the quantised weights of a live model."""
    found = ((name, live.get_submodule(name).weight) for name in names)
    return {f"{name}.weight": functional.dequantize_4bit(weight.data, weight.quant_state) for name, weight in found}


def test_the_merged_weights_are_the_dequantised_ones_bit_for_bit(trained, run_merge, tmp_path):
    base, adapter, live, document = trained
    result = run_merge(adapter, tmp_path / "merged")
    assert result.exit_code == 0, result.output
    merged, full = (load_file(path / "model.safetensors") for path in (tmp_path / "merged", base))
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    for name, weight in weights(live, document["modules"]).items():
        entry = record["tensors"][name]
        expected_norm = float((full[name].double() - weight.double()).norm())
        assert entry["quantization_norm"] == pytest.approx(expected_norm, rel=1e-6)
        if entry["update_norm"] is None:
            assert torch.equal(merged[name], weight.float()), name
            assert entry["done"] == ["dequantized"]
    assert record["base_weights"] == "trained"


def test_the_merged_model_answers_as_the_live_one(trained, load, run_merge, tmp_path):
    _, adapter, live, document = trained
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    adapted = PeftModel.from_pretrained(live, adapter, is_trainable=True).train()  # else a coarser kernel is taken
    merged, trained_logits = load(tmp_path / "merged")(TOKENS).logits, adapted(TOKENS).logits.float()
    # What is not quantised was in the type of loading while training, and is float32 in the merged model.
    bound = 1e-4 if document["load_dtype"] == "float32" else 0.05 * float(trained_logits.abs().max())
    torch.testing.assert_close(merged, trained_logits, rtol=0, atol=bound)


def test_full_weights_are_the_ones_of_the_base_and_both_ways_report(trained, run_merge, tmp_path):
    _, adapter, _, _ = trained
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in adapter.iterdir():
        if path.name != "quantization.json":
            (plain / path.name).write_bytes(path.read_bytes())
    full = run_merge(adapter, tmp_path / "full", "--base-weights", "full")
    as_trained = run_merge(adapter, tmp_path / "trained")
    assert run_merge(plain, tmp_path / "merged").exit_code == 0
    content = (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert (tmp_path / "full" / "model.safetensors").read_bytes() == content
    notes = [line for line in full.stderr.splitlines() if "norm(W - W_q)" in line]
    assert [line.split(":")[1].strip() for line in notes] == ["down_proj", "q_proj"]
    assert all(line in as_trained.stderr for line in notes)


@pytest.mark.parametrize("is_double", [False, True])
def test_tiles_of_rows_give_the_same_bytes(is_double, base_dir, make_adapter, run_merge, tmp_path, monkeypatch):
    adapter = make_adapter(base_dir("llama"), tmp_path / "adapter")
    modules = ["model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"]
    way = {"type": "nf4", "block_size": 64, "double_quantization": is_double, "load_dtype": "bfloat16"}
    document = {"format_version": "1", **way, "modules": modules}
    (adapter / "quantization.json").write_text(json.dumps(document))
    assert run_merge(adapter, tmp_path / "whole").exit_code == 0
    monkeypatch.setattr(merged_values, "TILE_BYTES", 700)
    assert run_merge(adapter, tmp_path / "tiled").exit_code == 0
    whole, tiled = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "tiled"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(whole[name], tiled[name])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 50), st.integers(1, 9), st.integers(0, 99), st.sampled_from([32, 64]))
def test_blocks_go_on_across_rows_and_stretches_are_as_the_whole(rows, half, wanted, seed, block_size):
    way = Quantization("nf4", "float32", (), block_size)
    weight = torch.randn(rows * block_size, 2 * half, generator=torch.Generator().manual_seed(seed))
    packed, state = functional.quantize_4bit(weight.reshape(-1, block_size), blocksize=block_size, quant_type="nf4")
    expected = functional.dequantize_4bit(packed, state).reshape(weight.shape)
    assert torch.equal(dequantized(weight, way), expected)
    step = rows_at_a_time(*weight.shape, wanted, way)
    assert torch.equal(torch.cat([dequantized(part, way) for part in weight.split(step)]), expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"block_size": 65}, '"block_size" is missing or not what it may be'),
        ({"type": "int4"}, '"type" is missing'),
        ({"load_dtype": None}, '"load_dtype" is missing'),
        ({"modules": "all"}, '"modules" is missing'),
        ({"format_version": "2"}, "format_version '2' is not known"),
        ({"modules": ["model.nothing"]}, '"model.nothing.weight"'),
    ],
)
def test_a_record_that_does_not_fit_is_refused(changes, named, base_dir, make_adapter, run_merge, tmp_path):
    adapter = make_adapter(base_dir("llama"), tmp_path / "adapter")
    way = {"type": "nf4", "block_size": 64, "double_quantization": False, "load_dtype": "bfloat16", "modules": []}
    (adapter / "quantization.json").write_text(json.dumps({"format_version": "1", **way, **changes}))
    result = run_merge(adapter, tmp_path / "merged")
    assert result.exit_code == 1
    assert named in result.stderr
    assert result.stderr.count("\n") == 1


TRANSPOSED = {
    "int8": {"type": "int8"},
    "nf4": {"type": "nf4", "block_size": 64, "double_quantization": False},
    "double": {"type": "nf4", "block_size": 64, "double_quantization": True},
}


@pytest.mark.parametrize("way", TRANSPOSED)
def test_layers_stored_transposed_are_quantised_the_other_way_round(way, make_adapter, run_merge, tmp_path):
    """GPT-2 stores (in, out); transformers quantises (out, in), and the adapter knows that."""
    base, document = tmp_path / "base", {"format_version": "1", "load_dtype": "float32"} | TRANSPOSED[way]
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    bits = {"load_in_8bit": True}
    if way != "int8":
        double = document["double_quantization"]
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double}
    settings = {"quantization_config": BitsAndBytesConfig(**bits), "dtype": torch.float32, "device_map": {"": "cpu"}}
    quantized = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False, **settings)
    layers = {name: each for name, each in quantized.named_modules() if type(each).__name__.startswith("Linear")}
    del layers["lm_head"]
    document["modules"] = list(layers)
    (adapter / "quantization.json").write_text(json.dumps(document))
    given_back = GPT2LMHeadModel.from_pretrained(base)
    for name, layer in layers.items():
        if way == "int8":
            weight = layer.weight.data * (layer.weight.SCB / 127)[:, None]
        else:
            weight = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        given_back.get_submodule(name).weight.data.copy_(weight.T)
    expected = PeftModel.from_pretrained(given_back, adapter).merge_and_unload().state_dict()
    result = run_merge(adapter, tmp_path / "merged", "--verify")
    assert result.exit_code == 0, result.output
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert len(layers) == 4
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())
    assert run_merge(adapter, tmp_path / "full", "--base-weights", "full").exit_code == 0
    full = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), adapter).merge_and_unload().state_dict()
    in_full = load_file(tmp_path / "full" / "model.safetensors")
    assert all(torch.equal(tensor, full[name]) for name, tensor in in_full.items())


def test_full_weights_need_not_be_stored_as_they_were_quantised(base_dir, make_adapter, tmp_path):
    adapter = read_adapter(make_adapter(base_dir("llama"), tmp_path / "adapter"))
    parts = {f"{name}.weight": Place("fused.weight", (2, 4), start, (4, 1)) for name, start in (("a", 0), ("b", 8))}
    live = LiveModel({"fused.weight": (4, 4)}, frozenset(), parts)
    assert changes._stored_whole(["fused.weight"], live, adapter, must_be=False) == []
    with pytest.raises(MergeError, match=r'"fused.weight" was quantised in training and is not stored as one tensor'):
        changes._stored_whole(["fused.weight"], live, adapter, must_be=True)
    with pytest.raises(MergeError, match=r'"other.weight"'):
        changes._stored_whole(["other.weight"], live, adapter, must_be=False)
