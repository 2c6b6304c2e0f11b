import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.loss.linear_cross_entropy import linear_cross_entropy
from mft_train.model.compute import settle_compute
from mft_train.model.load import empty_model, load_model
from mft_train.planning.memory import estimate_memory, logits_bytes
from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.packed_batch import Row, pack_rows
from mft_train.rows.row_stream import RowStream


@pytest.fixture
def run_config(tiny_model, tiny_dataset, tmp_path):
    def run_config(**settings):
        values = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": str(tmp_path / "run")}
        return values | {"max_steps": 10, "global_batch_size": 4} | settings

    return run_config


@pytest.fixture
def plan(run_config, tmp_path):
    def plan(*options, **settings):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(run_config(**settings)))
        result = CliRunner().invoke(main, ["plan", str(path), *options])
        assert result.exit_code == 0, result.stderr
        assert not (tmp_path / "run").exists()
        return result.stdout

    return plan


@pytest.mark.parametrize(("method", "is_tied"), [("lora", False), ("full", False), ("lora", True), ("full", True)])
def test_parameters_are_those_of_the_real_model(plan, run_config, tiny_dataset, tmp_path, make_model, method, is_tied):
    settings = {"method": method, "model": str(make_model(tmp_path / "model", tie_word_embeddings=is_tied))}
    document = json.loads(plan("--json", **settings))
    config = RunConfig(**run_config(**settings))
    compute = settle_compute(config, torch.device("cpu"))
    real = load_model(config, compute, open_dataset(str(tiny_dataset)))
    sizes = [parameter.numel() for parameter in real.parameters()]
    trained = [parameter.numel() for parameter in real.parameters() if parameter.requires_grad]
    assert document["parameters"] == sum(sizes)
    assert document["trainable_parameters"] == sum(trained)
    memory = document["memory"]
    assert memory["weights_bytes"] == sum(p.numel() * p.element_size() for p in real.parameters())
    assert (memory["gradients_bytes"], memory["optimizer_bytes"]) == (4 * sum(trained), 8 * sum(trained))
    assert memory["total_bytes"] == sum(
        value for name, value in memory.items() if name not in ("total_bytes", "host_bytes")
    )


def test_8bit_moments_take_less(plan):
    settings = {"lora": {"rank": 128}}
    plain, small = (
        json.loads(plan("--json", optimizer=optimizer, **settings))["memory"] for optimizer in ("adamw", "adamw_8bit")
    )
    assert small["optimizer_bytes"] < plain["optimizer_bytes"]
    same = {name for name in plain if plain[name] == small[name]}
    assert same == set(plain) - {"optimizer_bytes", "total_bytes"}


def kept_bytes(function, weights):
    """Bytes of all tensors that torch keeps for the backward pass of `function`, beside `weights`."""
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(size for size, _ in kept.values())


def write_model(path, kind):
    """A random model, wide and short as real models are: everything that does not grow with the layers is small."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2MoeConfig

    shape = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 48}
    kinds = {
        "dense": LlamaConfig(**shape),
        "experts": Qwen2MoeConfig(**shape, **experts, shared_expert_intermediate_size=96),
    }
    AutoModelForCausalLM.from_config(kinds[kind]).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(("kind", "dtype"), [("dense", "float32"), ("dense", "bfloat16"), ("experts", "float32")])
def test_activations_are_within_a_third_of_what_torch_keeps(run_config, tiny_dataset, tmp_path, kind, dtype):
    config = RunConfig(**run_config(method="full", model=write_model(tmp_path / "wide", kind)))
    dataset = open_dataset(str(tiny_dataset))
    model = load_model(config, settle_compute(config, torch.device("cpu")), dataset)
    length = dataset.seq_length
    batch = pack_rows([Row(np.arange(length), np.arange(length) == length - 1, np.array([length]), 0)])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        measured = kept_bytes(lambda: model(**batch.forward_keywords()).logits.sum(), model.parameters())
    compute = replace(settle_compute(config, torch.device("cpu")), dtype=dtype)
    estimate = estimate_memory(config, compute, dataset, empty_model(config), 1).activations
    assert measured / 1.33 < estimate < measured * 1.33


@pytest.mark.parametrize("is_trained", [True, False])
def test_the_loss_keeps_two_gradients_and_a_chunk_of_logits(is_trained):
    model = torch.nn.Module()
    model.projection = torch.nn.Linear(16, 50_000, bias=False).requires_grad_(is_trained)
    model.get_output_embeddings = lambda: model.projection
    hidden = torch.zeros(700, 16, requires_grad=True)
    labels, coefficients = torch.zeros(700, dtype=torch.int64), torch.zeros(700)
    kept = kept_bytes(
        lambda: linear_cross_entropy(hidden, model.projection.weight, labels, coefficients), model.parameters()
    )
    # 64 MiB of float32 logits are 335 positions.
    assert logits_bytes(model, 700, 4) == kept + 335 * 50_000 * 4
    assert logits_bytes(model, 700, 4) < 700 * 50_000 * 4


@pytest.mark.parametrize("mixture", [{}, {"large": 0.25, "small": 0.75}])
def test_rows_steps_and_tokens_are_those_of_the_stream(plan, tiny_dataset, mixture, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    document = json.loads(plan("--json", max_steps=None, epochs=3, mixture=mixture))
    dataset = open_dataset(str(tiny_dataset))
    stream = RowStream(dataset, mixture, 4, 0, 0, 1)
    assert (document["rows"], document["steps_per_epoch"]) == (stream.epoch_size, stream.steps_per_epoch)
    assert document["steps"] == 3 * stream.steps_per_epoch
    if not mixture:
        assert document["tokens_per_step"] == round(4 * sum(task.train_tokens for task in dataset.tasks) / 29)
    else:
        large, small = (task.train_tokens / task.train_rows for task in dataset.tasks)
        assert document["tokens_per_step"] == round(4 * (0.25 * large + 0.75 * small))


def test_the_table_says_what_is_an_estimate(plan):
    lines = plan("--processes", "2").splitlines()
    assert lines[2].split() == ["training", "rows", "29"]
    estimates = [line.split("  ")[0] for line in lines if line.endswith("(estimate)")]
    assert estimates == ["memory, logits", "memory, activations", "memory, total"]
    assert any(line.startswith("memory, gradient buckets") for line in lines)
    (loading,) = [line for line in lines if line.startswith("host memory, loading")]
    assert loading.endswith("on a machine with all (at most)")


def test_loading_counts_what_is_not_used_as_it_is_stored(plan):
    as_stored, cast = (json.loads(plan("--json", dtype=dtype)) for dtype in ("float32", "bfloat16"))
    trained = 4 * as_stored["trainable_parameters"]
    frozen = as_stored["parameters"] - as_stored["trainable_parameters"]
    assert as_stored["loading"]["rank_0_bytes"] == trained
    assert cast["loading"]["rank_0_bytes"] == trained + 2 * frozen
    assert {document["loading"]["files_bytes"] for document in (as_stored, cast)} == {4 * frozen}


def test_a_plan_makes_the_checks_of_a_run(run_config, tmp_path):
    path = tmp_path / "run.yaml"
    for settings, message in (
        ({"model": "nowhere-at-all"}, 'model "nowhere-at-all" cannot be loaded'),
        ({"global_batch_size": 3, "micro_batch_size": 2}, "set it to 4"),
        ({"lora": {"target_modules": ["nothing"]}}, "no adapter can be made"),
    ):
        path.write_text(yaml.safe_dump(run_config(**settings)))
        result = CliRunner().invoke(main, ["plan", str(path)])
        assert result.exit_code == 1
        assert message in result.stderr


def test_shared_weights_take_a_share_on_each_device(plan):
    settings = {"method": "full"}
    whole = json.loads(plan("--json", "--processes", "2", **settings))["memory"]
    shared = json.loads(plan("--json", "--processes", "2", distributed={"engine": "fsdp"}, **settings))["memory"]
    for name in ("gradients_bytes", "optimizer_bytes"):
        assert shared[name] == pytest.approx(whole[name] / 2, abs=1)
    assert whole["weights_bytes"] / 2 < shared["weights_bytes"] < 2 * whole["weights_bytes"]
    assert shared["gradient_buckets_bytes"] <= whole["gradient_buckets_bytes"] == whole["gradients_bytes"]


SIZES = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8},
}
SHARING = {
    "fsdp": {"engine": "fsdp"},
    **{f"stage {stage}": {"engine": "deepspeed", "stage": stage} for stage in (1, 2, 3)},
    "offload": {"engine": "deepspeed", "stage": 3, "offload_optimizer": True, "offload_parameters": True},
    "fsdp, offload": {"engine": "fsdp", "offload_parameters": True},
}


@pytest.mark.parametrize("size", sorted(SIZES))
def test_large_models_are_planned_by_part_for_every_engine(run_config, tiny_dataset, tmp_path, size):
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=32_000, **SIZES[size]).save_pretrained(tmp_path / size)
    settings = run_config(method="full", model=str(tmp_path / size), global_batch_size=64, dtype="bfloat16")
    dataset = open_dataset(str(tiny_dataset))
    model = empty_model(RunConfig(**settings))
    trained = sum(parameter.numel() for parameter in model.parameters())
    compute = settle_compute(RunConfig(**settings), torch.device("cpu"))

    def memory(distributed, number):
        config = RunConfig(**settings | {"distributed": distributed})
        return estimate_memory(config, compute, dataset, model, number)

    alone = memory({}, 1)
    assert (alone.weights, alone.gradients, alone.optimizer) == (4 * trained, 4 * trained, 8 * trained)
    for number in (8, 64):
        found = {name: memory(distributed, number) for name, distributed in SHARING.items()}
        for name in ("stage 1", "stage 2", "stage 3"):
            assert found[name].optimizer == 12 * trained // number
        assert found["fsdp"].optimizer == 8 * trained // number
        assert (found["stage 1"].weights, found["stage 1"].gradients) == (4 * trained, 4 * trained)
        assert (found["stage 2"].weights, found["stage 2"].gradients) == (4 * trained, 4 * trained // number)
        for name in ("stage 3", "fsdp"):
            assert found[name].gradients == 4 * trained // number
            assert 4 * trained // number < found[name].weights < 4 * trained
        assert found["stage 3"].total > found["offload"].total
        assert found["offload"].host == sum(4 * trained * part // number for part in (3, 1, 1))
        assert found["offload"].gradients == found["offload"].optimizer == 0
        # Copies in the compute type wait for the backward pass, but where that casts anew, or gathers such.
        assert found["stage 2"].activations - found["fsdp"].activations == 2 * trained
        assert 0 < found["stage 3"].activations - found["fsdp"].activations < 0.15 * 2 * trained
        few = replace(compute, gradient_checkpointing=True)
        config = RunConfig(**settings | {"distributed": SHARING["stage 2"]})
        assert estimate_memory(config, few, dataset, model, number).activations < 0.15 * 2 * trained
        kept = found["fsdp, offload"]
        assert kept.host == 4 * (4 * trained // number), "weights, gradients and two moments"
        assert kept.weights == found["fsdp"].weights - 4 * trained // number


def test_the_smallest_number_of_gpus_is_named(plan, run_config, tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=32_000, **SIZES["7B"]).save_pretrained(tmp_path / "7B")
    settings = {"method": "full", "model": str(tmp_path / "7B"), "global_batch_size": 64}
    found = json.loads(plan("--json", "--gpu-memory", "80GB", **settings))["smallest"]
    # Weights, gradients and moments of 6.7 billion numbers take 108 GB.
    assert found["ddp"] is None
    assert found["fsdp"] in (2, 4)
    assert found["deepspeed stage 3, offload"] == 2
    table = plan("--gpu-memory", "80GB", **settings).splitlines()
    assert [line.split()[2:] for line in table if line.startswith("GPUs, ddp")] == [
        ["does", "not", "fit", "on", "any", "number"]
    ]
    quantised = json.loads(plan("--json", "--gpu-memory", "80GB", **settings | {"method": "qlora"}))["smallest"]
    assert quantised["ddp"] == 1
    assert quantised["fsdp"] == 2
    compiled = json.loads(plan("--json", "--gpu-memory", "80GB", compile=True))["smallest"]
    assert compiled["fsdp"] is None, "it does not run there"
    result = CliRunner().invoke(main, ["plan", str(tmp_path / "run.yaml"), "--gpu-memory", "much"])
    assert result.exit_code == 2
    assert "much is not like 80GB" in result.stderr
