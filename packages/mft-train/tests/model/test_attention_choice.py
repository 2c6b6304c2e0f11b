import json

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch.nn import functional as F

from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.model.compute import settle_compute
from mft_train.model.isolation import check_isolation
from mft_train.model.load import load_model
from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.packed_batch import Row, pack_rows

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def config(tiny_model, tiny_dataset):
    def config(**settings):
        values = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": "o", "max_steps": 2}
        return RunConfig(**values | {"method": "full", "global_batch_size": 4, "validation_interval": 0} | settings)

    return config


@pytest.fixture
def launch(config, tmp_path):
    def launch(**settings):
        output = tmp_path / "-".join(["run", *map(str, settings.values())]).replace("/", "-")
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(config(**settings).model_dump() | {"output": str(output)}))
        return CliRunner().invoke(main, ["launch", str(path)]), output

    return launch


def save(shape, path):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape).save_pretrained(path)
    return str(path)


def gemma(path):
    """A model with soft-capped scores."""
    from transformers import Gemma2Config

    return save(Gemma2Config(**SHAPE, head_dim=8, query_pre_attn_scalar=8, sliding_window=8), path)


def bloom(path):
    """A model without position ids, so that no attention can tell conversations apart."""
    from transformers import BloomConfig

    return save(BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4), path)


def logits_and_gradients(model):
    ids = np.random.default_rng(3).integers(0, 97, 30)
    batch = pack_rows([Row(ids[:18], np.ones(18), np.array([12, 1, 5]), 0), Row(ids[18:], np.ones(12), [4, 8], 1)])
    logits = model(**batch.forward_keywords()).logits[0]
    F.cross_entropy(logits, batch.labels).backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


# transformers' eager attention takes its softmax in float32.
@pytest.mark.parametrize(("attention", "tolerance"), [("eager", 1e-5), ("sdpa", 1e-11)])
def test_every_attention_has_the_logits_and_gradients_of_segments(config, tiny_dataset, attention, tolerance):
    dataset = open_dataset(str(tiny_dataset))
    configs = [config(attention=name) for name in ("segments", attention)]
    models = [load_model(each, settle_compute(each, CPU), dataset).double() for each in configs]
    (logits, gradients), (other_logits, other_gradients) = map(logits_and_gradients, models)
    for one, other in zip([logits, *gradients.values()], [other_logits, *other_gradients.values()], strict=True):
        assert (one - other).abs().max() <= tolerance * one.abs().max()


def test_every_attention_trains_the_same_curve(launch):
    curves = {}
    for attention in ("segments", "eager", "sdpa"):
        result, run_dir = launch(attention=attention, micro_batch_size=2)
        assert result.exit_code == 0, result.stderr
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        curves[attention] = [line["loss"] for line in lines if line["event"] in ("train", "validation")]
        assert "attn_implementation" not in json.loads((run_dir / "final" / "config.json").read_text())
    assert curves["eager"] == pytest.approx(curves["segments"], rel=1e-5)
    assert curves["sdpa"] == pytest.approx(curves["segments"], rel=1e-5)


def test_soft_capped_scores_run_by_segment_as_in_eager_and_not_by_sdpa(launch, tmp_path):
    model = gemma(tmp_path / "gemma")
    curves = {}
    for attention in ("auto", "eager"):
        result, run_dir = launch(model=model, attention=attention)
        assert result.exit_code == 0, result.stderr
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        curves[attention] = [line["loss"] for line in lines if line["event"] in ("train", "validation")]
        assert yaml.safe_load((run_dir / "config.yaml").read_text())["attention"] == attention.replace(
            "auto", "segments"
        )
    assert curves["auto"] == pytest.approx(curves["eager"], rel=1e-5)
    result, run_dir = launch(model=model, attention="sdpa")
    assert (result.exit_code, run_dir.exists()) == (1, False)
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert line.endswith("does not support this attention, set attention: eager")


def test_a_model_that_knows_no_other_attention_is_given_one_of_its_own(launch, tmp_path):
    from transformers import FalconConfig

    model = save(
        FalconConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4), tmp_path / "f"
    )
    result, run_dir = launch(model=model)
    assert result.exit_code == 0, result.stderr
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["attention"] == "sdpa"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weak_leak_is_not_taken_for_rounding(config, tmp_path, dtype):
    """The state of this model's mixers decays: its logits move by less than bfloat16 is allowed to round."""
    from transformers import FalconH1Config

    mixer = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
    path = save(FalconH1Config(**SHAPE | mixer, head_dim=8), tmp_path / "hybrid")
    chosen = config(model=path, dtype=dtype)
    dataset = open_dataset(chosen.dataset)
    model = load_model(chosen, settle_compute(chosen, CPU), dataset).to(getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mamba.out_proj" in name:
                parameter.mul_(0.5)
    with pytest.raises(TrainError, match=r"see each other: logits differ by .* of the largest, build the dataset with"):
        check_isolation(model, dtype)
    check_isolation(model, dtype, is_packed=False)


def test_a_model_that_cannot_tell_conversations_apart_trains_on_rows_of_one(launch, config, tmp_path, make_dataset):
    model = bloom(tmp_path / "bloom")
    for attention, instead in (("segments", "eager"), ("eager", "segments")):
        result, run_dir = launch(model=model, attention=attention)
        assert (result.exit_code, run_dir.exists()) == (1, False)
        assert "conversations in a packed row see each other: logits differ by" in result.stderr
        fix = f"set attention: {instead}; or build the dataset with --packing none and set micro_batch_size: 1\n"
        assert result.stderr.endswith(fix)
    # Rows of 4 to 7 tokens have room for one conversation.
    alone = str(make_dataset(tmp_path / "alone", {"large": (9, 2)}, seq_length=7))
    assert not open_dataset(alone).is_packed
    assert launch(model=model, dataset=alone)[0].exit_code == 0
    assert "see each other" in launch(model=model, dataset=alone, micro_batch_size=2)[0].stderr


def test_isolation_is_measured_not_believed(config, tiny_dataset):
    chosen = config(attention="sdpa")
    model = load_model(chosen, settle_compute(chosen, CPU), open_dataset(str(tiny_dataset)))
    check_isolation(model, "float32")
    # An attention that takes the whole row for one conversation, as a 2-D mask of ones would make it.
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, keywords: (args, keywords | {"attention_mask": None}), with_kwargs=True
        )
    with pytest.raises(TrainError, match="see each other"):
        check_isolation(model, "float32")
