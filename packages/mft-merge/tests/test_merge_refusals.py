"""What cannot be merged rightly is refused by one line that names the culprit."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def adapter(base_dir, make_adapter, tmp_path):
    """An adapter directory that a test may damage."""
    return make_adapter(base_dir("llama"), tmp_path / "adapter")


@pytest.fixture
def fails(run_merge, tmp_path):
    """fails(*arguments) is the one line on stderr of a merge that must fail and leave nothing behind."""

    def run(*arguments) -> str:
        before = sorted(path.name for path in tmp_path.iterdir())
        result = run_merge(*arguments)
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        return result.stderr

    return run


def edit_config(adapter, **changes) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(adapter, edit) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


A_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_an_unknown_key_is_named(adapter, fails, tmp_path):
    edit_tensors(adapter, lambda tensors: tensors.update({"base_model.model.score.weight": torch.ones(2, 32)}))
    assert 'adapter tensor "base_model.model.score.weight" belongs to no tensor' in fails(adapter, tmp_path / "out")


def test_a_key_without_pefts_prefix_is_named(adapter, fails, tmp_path):
    edit_tensors(adapter, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32)}))
    assert '"model.norm.weight"' in fails(adapter, tmp_path / "out")


def test_an_update_without_a_base_tensor_is_named(adapter, fails, tmp_path):
    def add_layer(tensors):
        for key in [key for key in tensors if "layers.1" in key]:
            tensors[key.replace("layers.1", "layers.7")] = tensors[key].clone()

    edit_tensors(adapter, add_layer)
    assert "layers.7.mlp.down_proj.lora_A.weight" in fails(adapter, tmp_path / "out")


def test_an_empty_tensor_is_named(adapter, fails, tmp_path):
    edit_tensors(adapter, lambda tensors: tensors.update({A_KEY: torch.empty(0)}))
    message = fails(adapter, tmp_path / "out")
    assert f'adapter tensor "{A_KEY}" is empty' in message
    assert "gathered" in message


def test_a_tensor_with_nan_is_named(adapter, fails, tmp_path):
    edit_tensors(adapter, lambda tensors: tensors[A_KEY].fill_(float("nan")))
    assert f'adapter tensor "{A_KEY}" has values that are not finite' in fails(adapter, tmp_path / "out")


def test_a_missing_factor_is_named(adapter, fails, tmp_path):
    edit_tensors(adapter, lambda tensors: tensors.pop(A_KEY))
    assert '"model.layers.0.self_attn.q_proj" do not fit together (a)' in fails(adapter, tmp_path / "out")


def test_dora_without_its_magnitudes_is_refused(adapter, fails, tmp_path):
    edit_config(adapter, use_dora=True)
    assert "(magnitude)" in fails(adapter, tmp_path / "out")


def test_a_damaged_config_is_named(adapter, fails, tmp_path):
    edit_config(adapter, lora_alpha=None)
    assert '"lora_alpha" is missing or no number' in fails(adapter, tmp_path / "out")
    edit_config(adapter, lora_alpha=8, rank_pattern={"(": 2})
    assert 'pattern "("' in fails(adapter, tmp_path / "out")
    (adapter / "adapter_config.json").write_text("{")
    assert "invalid JSON" in fails(adapter, tmp_path / "out")


def test_a_rank_other_than_the_configs_is_refused(adapter, fails, tmp_path):
    edit_config(adapter, r=5)
    assert "4x48 and 32x4, not of the rank 5" in fails(adapter, tmp_path / "out")


def test_a_shape_mismatch_is_refused(adapter, fails, tmp_path):
    edit_tensors(adapter, lambda tensors: tensors.update({A_KEY: torch.ones(4, 16)}))
    assert "has shape [32, 16], the weight has [32, 32]" in fails(adapter, tmp_path / "out")


def test_a_saved_module_of_another_shape_is_refused(adapter, fails, tmp_path):
    edit_tensors(adapter, lambda tensors: tensors.update({"base_model.model.model.norm.weight": torch.ones(31)}))
    assert "has shape [31], the base has [32]" in fails(adapter, tmp_path / "out")


def test_a_vocabulary_resized_on_one_side_is_refused(adapter, fails, tmp_path):
    edit_tensors(adapter, lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(270, 32)}))
    assert '"model.embed_tokens.weight" has 258 rows and "lm_head.weight" has 270' in fails(adapter, tmp_path / "out")


@pytest.mark.parametrize("peft_type", ["IA3", "PROMPT_TUNING", "ADALORA", None])
def test_another_peft_type_is_refused(peft_type, adapter, fails, tmp_path):
    edit_config(adapter, peft_type=peft_type)
    assert f'type "{peft_type}" cannot be merged' in fails(adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("trainable_token_indices", [1]),
        ("lora_bias", True),
        ("init_lora_weights", "pissa"),
        ("alora_invocation_tokens", [1]),
        ("layer_replication", [[0, 1]]),
    ],
)
def test_a_setting_that_changes_the_weights_otherwise_is_refused(setting, value, adapter, fails, tmp_path):
    edit_config(adapter, **{setting: value})
    named = {"init_lora_weights": value, "lora_bias": "(bias)"}.get(setting, setting)
    assert named in fails(adapter, tmp_path / "out")


def test_a_full_model_is_nothing_to_merge(base_dir, fails, tmp_path):
    assert "is a full model already, nothing to merge" in fails(base_dir("llama"), tmp_path / "out")


def test_a_directory_without_an_adapter_is_refused(fails, tmp_path):
    assert "is no adapter directory" in fails(tmp_path, tmp_path / "out")
    assert "no adapter directory" in fails(tmp_path / "missing", tmp_path / "out")


def test_a_base_that_is_not_here_asks_for_base(adapter, fails, tmp_path):
    edit_config(adapter, base_model_name_or_path="someone/some-model")
    message = fails(adapter, tmp_path / "out")
    assert '"someone/some-model"' in message
    assert "--base DIR" in message


def test_base_stands_in_for_the_named_one(adapter, base_dir, run_merge, tmp_path):
    edit_config(adapter, base_model_name_or_path="someone/some-model")
    assert run_merge(adapter, tmp_path / "out", "--base", base_dir("llama")).exit_code == 0


def test_a_quantised_base_is_refused(adapter, base_dir, fails, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_dir("llama"), base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert "quantised" in fails(adapter, tmp_path / "out", "--base", base)


def test_a_qlora_run_is_merged_with_a_note(adapter, run_merge, tmp_path):
    (tmp_path / "config.yaml").write_text("model: base\nmethod: qlora\n")
    result = run_merge(adapter, tmp_path / "out")
    assert result.exit_code == 0
    assert "note: the adapter was trained over a quantised base" in result.stderr


@pytest.mark.parametrize("damage", ["cut", "header", "longer"])
def test_a_broken_base_file_is_named(damage, adapter, base_dir, fails, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_dir("llama"), base)
    path = base / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-7], "header": content[:20], "longer": content + b"x"}[damage])
    message = fails(adapter, tmp_path / "out", "--base", base)
    assert "broken safetensors file" in message
    assert str(path) in message


def test_a_missing_shard_is_named(base_dir, make_adapter, fails, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(base_dir("qwen2", shard_size="30KB"), base)
    adapter = make_adapter(base, tmp_path / "adapter")
    shard = sorted(base.glob("*.safetensors"))[1]
    shard.unlink()
    assert f'shard "{shard.name}" is missing' in fails(adapter, tmp_path / "out")


def test_weights_too_large_for_float16_are_refused(adapter, fails, tmp_path):
    edit_tensors(adapter, lambda tensors: tensors[A_KEY].fill_(1e6))
    assert "do not fit float16" in fails(adapter, tmp_path / "out", "--dtype", "float16")


def test_a_non_empty_output_needs_overwrite(adapter, run_merge, fails, tmp_path):
    out = tmp_path / "out"
    assert run_merge(adapter, out).exit_code == 0
    before = (out / "config.json").read_bytes()
    assert "is not empty" in fails(adapter, out)
    (out / "config.json").write_text("{}")
    assert run_merge(adapter, out, "--overwrite").exit_code == 0
    assert (out / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("other", ["thesis.txt", "chapters/one.txt"])
@pytest.mark.parametrize("holds", ["nothing else", "a config.json", "a merged model"])
def test_overwrite_spares_what_no_merge_wrote(holds, other, adapter, run_merge, fails, tmp_path):
    out = tmp_path / "out"
    if holds == "a merged model":
        assert run_merge(adapter, out).exit_code == 0
    (out / other).parent.mkdir(parents=True, exist_ok=True)
    (out / other).write_text("years of work")
    if holds == "a config.json":
        (out / "config.json").write_text("{}")
    named = "config.json" if holds == "a config.json" and other > "config.json" else other
    assert f'holds "{named}", which no merge put there' in fails(adapter, out, "--overwrite")
    assert (out / other).read_text() == "years of work"


def test_the_inputs_cannot_be_the_output(adapter, fails, tmp_path):
    assert "is or holds the input" in fails(adapter, adapter, "--overwrite")
    assert "is or holds the input" in fails(adapter, tmp_path, "--overwrite")


def test_an_unwritable_output_is_one_line(adapter, fails, tmp_path):
    (tmp_path / "file").write_text("")
    assert f"File exists, in {tmp_path / 'file'}" in fails(adapter, tmp_path / "file" / "out")


def test_an_output_that_is_a_symbolic_link_is_refused(adapter, fails, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert "is a symbolic link" in fails(adapter, tmp_path / "link", "--overwrite")


def test_a_base_of_symbolic_links_is_read_and_a_broken_link_is_named(adapter, base_dir, run_merge, fails, tmp_path):
    """The cache of the hub's client is made of such links."""
    base = tmp_path / "base"
    base.mkdir()
    for path in base_dir("llama").iterdir():
        (base / path.name).symlink_to(path)
    assert run_merge(adapter, tmp_path / "merged", "--base", base).exit_code == 0
    assert not any(path.is_symlink() for path in (tmp_path / "merged").iterdir())
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to(tmp_path / "nowhere")
    assert "neither model.safetensors nor" in fails(adapter, tmp_path / "out", "--base", base)


def test_another_base_than_the_adapters_is_refused_where_it_names_its_own(
    adapter, base_dir, run_merge, fails, tmp_path
):
    base = base_dir("llama")
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    fingerprint = json.loads((tmp_path / "merged" / "merge.json").read_text())["base"]["fingerprint"]
    (adapter / "base_model.json").write_text(json.dumps({"format_version": "1", "fingerprint": fingerprint}))
    assert run_merge(adapter, tmp_path / "again", "--base", base_dir("llama", shard_size="30KB")).exit_code == 0
    other = tmp_path / "other"
    shutil.copytree(base, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert "is not the one that the adapter was trained on" in fails(adapter, tmp_path / "out", "--base", other)


def test_a_base_of_the_hub_is_found_in_its_cache(adapter, base_dir, run_merge, fails, tmp_path, monkeypatch):
    edit_config(adapter, base_model_name_or_path="someone/some-model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert "cannot be had from the hub" in fails(adapter, tmp_path / "out")
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--someone--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(base_dir("llama"), repository / "snapshots" / commit)
    assert run_merge(adapter, tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["base"]["name"] == "someone/some-model"


def test_adapters_of_a_run_are_found_with_where_they_come_from(adapter, run_merge, tmp_path):
    run = tmp_path / "run"
    for place in ("final", "best/sql", "checkpoints/step-00000100/model"):
        shutil.copytree(adapter, run / place)
        document = run / place / "base_model.json"
        known = json.loads(document.read_text()) if document.is_file() else {}
        document.write_text(json.dumps(known | {"dataset_sha256": "d" * 64}))
    (run / "metrics.jsonl").write_text("")
    config_sha256 = hashlib.sha256(b"method: lora\n").hexdigest()
    expected = {"run_config_sha256": config_sha256, "dataset_sha256": "d" * 64}
    (run / "config.yaml").write_text("method: lora\n")
    best = {"format_version": "1", "checkpoint": "step-00000100", "global_step": 100, "loss": 1.5}
    (run / "checkpoints" / "best.json").write_text(json.dumps(best))
    for index, name in enumerate(
        (".", "final", "best", "best/sql", "checkpoints/step-00000100", "checkpoints/step-00000100/model")
    ):
        result = run_merge(run / name, tmp_path / f"out-{index}", "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["run"] == expected


def test_what_a_run_does_not_have_is_told(adapter, run_merge, tmp_path):
    run = tmp_path / "run"
    for place in ("best/sql", "checkpoints/step-00000100/model"):
        shutil.copytree(adapter, run / place)
    (run / "metrics.jsonl").write_text("")
    (run / "checkpoints" / "best.json").write_text('{"format_version": "2"}')
    for name, message in (
        (".", "no final model yet, in {run}, name {run}/checkpoints/step-00000100"),
        ("best/java", 'no best model of "java", in {run}/best, name one of sql'),
        ("best", "format_version '2' is not known, in {run}/checkpoints/best.json"),
    ):
        result = run_merge(run / name, tmp_path / "out")
        assert result.exit_code == 1
        assert message.format(run=run) in result.stderr


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("adapter/adapter_config.json", "rank_pattern", 3),
        ("adapter/adapter_config.json", "rank_pattern", {"q_proj": "x"}),
        ("adapter/adapter_config.json", "alpha_pattern", {"q_proj": [1]}),
        ("adapter/adapter_config.json", "base_model_name_or_path", 7),
        ("base/config.json", "model_type", ["llama"]),
        ("base/model.safetensors.index.json", "metadata", "x"),
        ("base/model.safetensors.index.json", "weight_map", {"model.norm.weight": 1}),
        ("adapter/tokenizer.json", "added_tokens", 5),
        ("adapter/tokenizer.json", "model", "x"),
    ],
)
def test_a_json_value_of_another_kind_is_told_by_its_key(
    place, key, value, base_dir, make_adapter, run_merge, tmp_path
):
    shutil.copytree(base_dir("llama", shard_size="30KB"), tmp_path / "base")
    make_adapter(tmp_path / "base", tmp_path / "adapter")
    path = tmp_path / place
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    result = run_merge(
        tmp_path / "adapter", tmp_path / "out", *(() if "name" in key else ("--base", tmp_path / "base"))
    )
    assert result.exit_code == 1
    assert result.stderr.count("Error: ") == 1
    assert ", which it may not be, in " in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_directory_stands_for_its_result(adapter, run_merge, tmp_path):
    (tmp_path / "run").mkdir()
    adapter.rename(tmp_path / "run" / "final")
    result = run_merge(tmp_path / "run", tmp_path / "out", "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record["out"] == str(tmp_path / "out")
    assert {tuple(found["done"]) for found in record["tensors"].values()} == {("updated",)}
