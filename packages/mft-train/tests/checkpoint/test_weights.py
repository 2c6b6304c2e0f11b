"""A full model in files that ranks write is the one that transformers saves, whatever the number of files."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from mft_train.checkpoint.weights import as_published, collect_weights, named_files, write_index, write_weights
from mft_train.engine.plain import PlainEngine
from mft_train.errors import TrainError

SHAPES = {
    "llama": {"tie_word_embeddings": True, "intermediate_size": 24},
    "mixtral": {"num_local_experts": 3, "intermediate_size": 24},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 12, "num_experts_per_tok": 2, "head_dim": 8},
    "gpt_neox": {"intermediate_size": 24},
}


@pytest.fixture(params=sorted(SHAPES))
def model(request):
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = AutoConfig.for_model(request.param, **shape | SHAPES[request.param], num_key_value_heads=2)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def test_files_by_layers_hold_what_transformers_saves(model, tmp_path):
    model.save_pretrained(tmp_path / "theirs")
    theirs = {n: t for path in (tmp_path / "theirs").glob("*.safetensors") for n, t in load_file(path).items()}
    tensors = dict(model.named_parameters())
    files = named_files(tensors, max_bytes=5000)
    assert len(files) > 3
    ours = tmp_path / "ours"
    ours.mkdir()
    for file, names in files.items():
        write_weights(model, {file: {name: tensors[name].detach() for name in names}}, ours)
    write_index(ours)
    read = {n: t for path in ours.glob("*.safetensors") for n, t in load_file(path).items()}
    assert read.keys() == theirs.keys()
    assert all(read[name].equal(tensor) for name, tensor in theirs.items())
    index = json.loads((ours / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == theirs.keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in theirs.values())
    model.config.save_pretrained(ours)
    loaded, found = AutoModelForCausalLM.from_pretrained(ours, output_loading_info=True, trust_remote_code=False)
    assert not found["missing_keys"]
    ids = torch.arange(9)[None]
    assert loaded(ids).logits.equal(model.eval()(ids).logits)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_write_every_file_once_and_together_what_transformers_saves(model, tmp_path, ranks):
    model.save_pretrained(tmp_path / "theirs")
    theirs = {n: t for path in (tmp_path / "theirs").glob("*.safetensors") for n, t in load_file(path).items()}
    ours = tmp_path / "ours"
    ours.mkdir()
    written = []
    for rank in range(ranks):
        accelerator = SimpleNamespace(process_index=rank, num_processes=ranks, unwrap_model=lambda model: model)
        files = collect_weights(PlainEngine(accelerator), model, is_copied=False, max_file_bytes=5000)
        assert len(files) >= 1
        write_weights(model, files, ours)
        written += files
    assert len(written) == len(set(written)) > 3
    write_index(ours)
    read = {n: t for path in ours.glob("*.safetensors") for n, t in load_file(path).items()}
    assert read.keys() == theirs.keys()
    assert all(read[name].equal(tensor) for name, tensor in theirs.items())


def test_what_is_copied_does_not_change_with_the_model(model):
    accelerator = SimpleNamespace(process_index=0, num_processes=1, unwrap_model=lambda model: model)
    (tensors,) = collect_weights(PlainEngine(accelerator), model, is_copied=True).values()
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(tensor.equal(before[name]) for name, tensor in tensors.items())


def test_a_layer_is_never_torn_apart(model):
    for names in named_files(dict(model.named_parameters()), max_bytes=1).values():
        assert len({name.split(".layers.")[1].split(".")[0] for name in names if ".layers." in name}) <= 1


def test_a_small_model_is_one_file_without_an_index(model, tmp_path):
    assert list(named_files(dict(model.named_parameters()), max_bytes=10**9)) == ["model.safetensors"]
    write_index(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_old_transformers_that_would_rename_is_refused(model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers.core_model_loading", None)
    assert as_published(model, {}) == {}
    monkeypatch.setattr(model, "_checkpoint_conversion_mapping", {"a": "b"}, raising=False)
    with pytest.raises(TrainError, match="transformers 4 cannot save this model"):
        as_published(model, {})
