"""Several adapters: their updates are added, each times its weight."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file

TOKENS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def two(base_dir, make_adapter, tmp_path_factory):
    """Two adapters of one base, of different ranks and layers."""
    folder = tmp_path_factory.mktemp("two")
    one = make_adapter(base_dir("llama"), folder / "one", target_modules=["q_proj", "down_proj"], seed=1)
    other = make_adapter(base_dir("llama"), folder / "other", target_modules=["q_proj", "up_proj"], r=3, seed=2)
    return one, other


def tensors(model_dir):
    return load_file(model_dir / "model.safetensors")


def test_the_sum_is_the_live_model_of_both(two, base_dir, load, run_merge, tmp_path):
    result = run_merge("--adapter", f"{two[0]}=0.7", "--adapter", f"{two[1]}=-0.3", tmp_path / "out")
    assert result.exit_code == 0, result.output
    live = PeftModel.from_pretrained(load(base_dir("llama")), two[0], adapter_name="one")
    live.load_adapter(two[1], adapter_name="other")
    live.add_weighted_adapter(["one", "other"], [0.7, -0.3], "sum", combination_type="cat")
    live.set_adapter("sum")
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")(TOKENS).logits, live(TOKENS).logits, rtol=0, atol=1e-5)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one_weight=st.floats(-2, 2), other_weight=st.floats(-2, 2))
def test_the_sum_is_that_of_the_single_updates(one_weight, other_weight, two, base_dir, run_merge, tmp_path):
    shutil.rmtree(tmp_path, ignore_errors=True)
    both = ["--adapter", f"{two[0]}={one_weight}", "--adapter", f"{two[1]}={other_weight}"]
    assert run_merge(*both, tmp_path / "both").exit_code == 0
    for adapter, weight in zip(two, (one_weight, other_weight), strict=True):
        assert run_merge("--adapter", f"{adapter}={weight}", tmp_path / adapter.name).exit_code == 0
    base, one, other = tensors(base_dir("llama")), tensors(tmp_path / "one"), tensors(tmp_path / "other")
    for name, tensor in tensors(tmp_path / "both").items():
        expected = one[name] + other[name] - base[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-5)


def test_weights_that_cancel_give_back_the_base(two, base_dir, run_merge, tmp_path):
    same = ["--adapter", f"{two[0]}=1", "--adapter", f"{two[0]}=-1"]
    assert run_merge(*same, tmp_path / "out").exit_code == 0
    base = tensors(base_dir("llama"))
    for name, tensor in tensors(tmp_path / "out").items():
        torch.testing.assert_close(tensor, base[name], rtol=0, atol=1e-6)


def combined(two, run_merge, out, rule, density, *more):
    """The tensors of a merge of both adapters by a rule."""
    both = ["--adapter", f"{two[0]}=0.7", "--adapter", f"{two[1]}=-0.3"]
    result = run_merge(*both, out, "--combine", rule, "--density", density, *more)
    assert result.exit_code == 0, result.output
    return tensors(out)


@pytest.mark.parametrize("rule", ["ties", "magnitude_prune"])
def test_a_rule_gives_what_peft_gives_at_full_rank(rule, two, base_dir, run_merge, load, tmp_path):
    found = combined(two, run_merge, tmp_path / "out", rule, 0.4)
    live = PeftModel.from_pretrained(load(base_dir("llama")), two[0], adapter_name="one")
    live.load_adapter(two[1], adapter_name="other")
    more = {"combination_type": f"{rule}_svd", "density": 0.4, "svd_rank": 32, "svd_full_matrices": False}
    live.add_weighted_adapter(["one", "other"], [0.7, -0.3], "sum", **more)
    live.set_adapter("sum")
    expected = live.merge_and_unload().state_dict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-5)
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["combination"] == {"rule": rule, "density": 0.4, "seed": 0}


@pytest.mark.parametrize("rule", ["dare_linear", "dare_ties"])
def test_dare_keeps_a_share_by_the_seed(rule, two, base_dir, run_merge, tmp_path):
    name = "model.layers.0.mlp.down_proj.weight"  # of the first adapter only
    base, whole = tensors(base_dir("llama"))[name], combined(two, run_merge, tmp_path / "whole", rule, 1)[name]
    found = [combined(two, run_merge, tmp_path / str(seed), rule, 0.25, "--seed", seed)[name] for seed in (0, 1)]
    assert not torch.equal(*found)
    again = combined(two, run_merge, tmp_path / "again", rule, 0.25)[name]
    assert torch.equal(again, found[0])
    is_kept = found[0] != base
    assert 0.2 < float(is_kept.float().mean()) < 0.3
    torch.testing.assert_close((found[0] - base)[is_kept], (whole - base)[is_kept] * 4, rtol=0, atol=1e-5)


def test_pruning_nothing_is_the_sum(two, run_merge, tmp_path):
    found = combined(two, run_merge, tmp_path / "out", "magnitude_prune", 1)
    both = ["--adapter", f"{two[0]}=0.7", "--adapter", f"{two[1]}=-0.3"]
    assert run_merge(*both, tmp_path / "sum").exit_code == 0
    for name, tensor in tensors(tmp_path / "sum").items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)


def test_what_is_no_whole_matrix_cannot_be_combined(base_dir, make_adapter, run_merge, tmp_path):
    options = {"lora_bias": True, "target_modules": ["q_proj"]}
    adapter = make_adapter(base_dir("qwen2"), tmp_path / "adapter", **options)
    arguments = ["--adapter", f"{adapter}=1", "--combine", "ties", "--density", 0.5]
    result = run_merge(*arguments, tmp_path / "out")
    assert result.exit_code == 1
    assert "can only be added" in result.stderr
    for wrong in (arguments[:4], [adapter, *arguments[2:]], [*arguments[:2], "--density", 0.5]):
        assert run_merge(*wrong, tmp_path / "out").exit_code == 2


def test_what_has_no_weighted_sum_is_refused(two, base_dir, make_adapter, run_merge, tmp_path):
    saved = make_adapter(base_dir("llama"), tmp_path / "saved", modules_to_save=["input_layernorm"])
    result = run_merge("--adapter", f"{two[0]}=1", "--adapter", f"{saved}=1", tmp_path / "out")
    assert result.exit_code == 1
    assert 'input_layernorm.weight" cannot be weighted' in result.stderr
    dora = make_adapter(base_dir("llama"), tmp_path / "dora", use_dora=True)
    result = run_merge("--adapter", f"{dora}=0.5", tmp_path / "out")
    assert 'lora_magnitude_vector" cannot be weighted' in result.stderr


@pytest.mark.parametrize("arguments", [["a"], ["a", "b", "c"], ["--adapter", "a=1", "b", "c"], ["--adapter", "a", "b"]])
def test_wrong_usage_is_said(arguments, run_merge):
    result = run_merge(*arguments)
    assert result.exit_code == 2
    assert "ADAPTER and OUT" in result.stderr or "is not DIR=WEIGHT" in result.stderr
