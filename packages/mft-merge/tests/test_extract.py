"""The way back: the adapter between two models, exact at full rank, the closest at a smaller one."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mft_merge.extract import low_rank

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tensors(model_dir):
    return load_file(model_dir / "model.safetensors")


@pytest.fixture(params=["llama", "tied", "gpt2"])
def pair(request, base_dir, make_adapter, run_merge, tmp_path):
    """A base, and a model tuned from it by an adapter of rank 4 and trained layer norms."""
    base = base_dir(request.param)
    gpt2 = {"target_modules": ["c_attn", "c_proj"], "modules_to_save": ["ln_1"]}
    llama = {"target_modules": ALL_LINEAR, "modules_to_save": ["input_layernorm"]}
    adapter = make_adapter(base, tmp_path / "adapter", **(gpt2 if request.param == "gpt2" else llama))
    assert run_merge(adapter, tmp_path / "tuned").exit_code == 0
    return base, tmp_path / "tuned"


@pytest.mark.parametrize("rank", [4, 1000])
def test_merging_what_was_extracted_gives_the_tuned_model(rank, pair, load, load_adapted, run_merge, tmp_path):
    base, tuned = pair
    result = run_merge("extract", base, tuned, tmp_path / "out", "--rank", rank, "--json")
    assert result.exit_code == 0, result.output
    residuals = json.loads(result.stdout)["residuals"]
    assert max(residuals.values()) < 1e-5
    assert run_merge(tmp_path / "out", tmp_path / "again").exit_code == 0
    wanted = tensors(tuned)
    for name, tensor in tensors(tmp_path / "again").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-5)
    live = load_adapted(base, tmp_path / "out")
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(live(tokens).logits, load(tuned)(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["tied", "llama"])
def test_a_changed_embedding_is_taken_whole_and_stays_tied(kind, base_dir, load, load_adapted, run_merge, tmp_path):
    base = base_dir(kind)
    tuned = load(base)
    with torch.no_grad():
        tuned.model.embed_tokens.weight.add_(0.1)
        tuned.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    tuned.save_pretrained(tmp_path / "tuned")
    assert run_merge("extract", base, tmp_path / "tuned", tmp_path / "out", "--rank", 1000).exit_code == 0
    assert run_merge(tmp_path / "out", tmp_path / "again").exit_code == 0
    wanted, found = tensors(tmp_path / "tuned"), tensors(tmp_path / "again")
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-5)
    assert load(tmp_path / "again").config.tie_word_embeddings is (kind == "tied")
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        live = load_adapted(base, tmp_path / "out")(tokens).logits
        torch.testing.assert_close(live, load(tmp_path / "tuned")(tokens).logits, rtol=0, atol=1e-4)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_the_residual_is_that_of_the_singular_values_left_out(rows, columns, rank, seed):
    difference = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    a, b, residual = low_rank(difference, rank)
    values = torch.linalg.svdvals(difference.double())
    assert residual == pytest.approx(float(values[rank:].norm() / values.norm()), abs=1e-5)
    assert b.shape[1] == a.shape[0] == min(rank, rows, columns)


@pytest.mark.parametrize("is_flat", [False, True], ids=["a steep spectrum", "a flat spectrum"])
def test_a_large_matrix_is_decomposed_almost_as_well_as_can_be(is_flat):
    torch.manual_seed(1)
    difference = torch.randn(200, 300)
    if not is_flat:
        difference = difference @ torch.diag(0.9 ** torch.arange(300.0)) @ torch.randn(300, 300)
    _, _, residual = low_rank(difference, 8)
    values = torch.linalg.svdvals(difference.double())
    best = float(values[8:].norm() / values.norm())
    assert best - 1e-6 <= residual <= best * 1.01
    low = torch.randn(200, 8) @ torch.randn(8, 300)
    assert low_rank(low, 8)[2] < 1e-5
    assert all(map(torch.equal, low_rank(difference, 8)[:2], low_rank(difference, 8)[:2]))


def test_models_that_do_not_fit_together_are_refused(base_dir, run_merge, tmp_path):
    base = base_dir("llama")
    for other, named in ((base_dir("qwen2"), "is in one of the models only"), (base, "no matrix differs")):
        result = run_merge("extract", base, other, tmp_path / "out", "--rank", 2)
        assert result.exit_code == 1
        assert named in result.stderr
    wide = tmp_path / "wide"
    wide.mkdir()
    changed = tensors(base) | {"model.norm.weight": torch.ones(31)}
    save_file(changed, wide / "model.safetensors", metadata={"format": "pt"})
    (wide / "config.json").write_text((base / "config.json").read_text())
    assert "has shape [31]" in run_merge("extract", base, wide, tmp_path / "out", "--rank", 2).stderr
    assert not (tmp_path / "out").exists()
