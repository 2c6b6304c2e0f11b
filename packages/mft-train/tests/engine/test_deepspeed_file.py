"""A DeepSpeed file adds DeepSpeed's own settings; what the run decides is refused in it by name."""

import json

import pytest

from mft_train.config.config import RunConfig
from mft_train.engine.deepspeed import OURS, buffer_sizes, check_deepspeed_file, deepspeed_settings
from mft_train.errors import TrainError


@pytest.fixture
def config(tmp_path):
    def config(content, **distributed):
        path = tmp_path / "ds.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        values = {"engine": "deepspeed", "deepspeed_config": str(path)} | distributed
        return RunConfig(model="m", dataset="d", output="o", max_steps=1, distributed=values)

    return config


def test_settings_of_deepspeed_are_handed_on_and_auto_is_left_to_the_run(config):
    zero = {"stage": "auto", "reduce_bucket_size": 1000, "offload_optimizer": {"device": "auto"}}
    given = {"communication_data_type": "fp32", "zero_optimization": zero, "train_batch_size": "auto"}
    chosen = config(given, stage=1)
    check_deepspeed_file(chosen)
    settings = deepspeed_settings(chosen, 2, "cpu", {})
    assert settings["communication_data_type"] == "fp32"
    assert settings["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 1000}
    assert "train_batch_size" not in settings
    assert settings["gradient_accumulation_steps"] * settings["train_micro_batch_size_per_gpu"] * 2 == 16


def test_buffers_are_as_large_as_the_model_needs_or_as_the_file_says(config, tiny_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    layer, whole = (sum(p.numel() for p in part.parameters()) for part in (model.model.layers[0], model))
    assert buffer_sizes(config({}, stage=2), model) == {"reduce_bucket_size": whole}
    assert buffer_sizes(config({}, stage=3), model) == {
        "reduce_bucket_size": whole,
        "stage3_prefetch_bucket_size": layer,
        "stage3_max_live_parameters": whole,  # it has two layers
        "stage3_max_reuse_distance": layer,
    }
    given = {"zero_optimization": {"reduce_bucket_size": 5e8, "stage3_max_live_parameters": 7}}
    chosen = config(given, stage=3)
    sizes = buffer_sizes(chosen, model)
    assert (sizes["reduce_bucket_size"], sizes["stage3_max_live_parameters"]) == (500_000_000, 7)
    assert deepspeed_settings(chosen, 2, "cpu", sizes)["zero_optimization"].items() >= sizes.items()
    for weight in model.parameters():
        weight.requires_grad_(weight.dim() == 1)
    assert buffer_sizes(config({}, stage=1), model)["reduce_bucket_size"] == 5 * 32, "of what is trained"


@pytest.mark.parametrize("name", OURS)
def test_what_the_run_decides_is_refused_by_name(config, name):
    with pytest.raises(TrainError, match=f'"{name}" is decided by {OURS[name]} of the run'):
        check_deepspeed_file(config({name: {"enabled": True}}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage is 3, distributed.stage is 2"),
        ("{", "not valid JSON: "),
        ("[1]", "the DeepSpeed file is not a JSON object"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(config, content, message):
    with pytest.raises(TrainError, match=message):
        check_deepspeed_file(config(content))


def test_a_file_that_is_not_there_is_one_line(config, tmp_path):
    chosen = config({})
    (tmp_path / "ds.json").unlink()
    with pytest.raises(TrainError, match="cannot read the DeepSpeed file: No such file or directory"):
        check_deepspeed_file(chosen)
