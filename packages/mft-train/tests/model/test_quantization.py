"""An adapter over a base in 4 bits: trained on what the 4 bits give back, recorded for the merge, resumed exactly."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.model.compute import settle_compute
from mft_train.model.load import load_model
from mft_train.model.quantization import quantized_bytes, quantized_modules
from mft_train.rows.dataset_dir import open_dataset

pytestmark = pytest.mark.whole
WIDTH = {"hidden_size": 64, "intermediate_size": 128}  # rows of whole blocks
MEASURED = {"tokens_per_second", "peak_memory_bytes"}


@pytest.fixture(scope="module")
def base(make_model, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("wide") / "base", **WIDTH)


@pytest.fixture
def launch(write_run, tmp_path, base):
    defaults = {"max_steps": 4, "global_batch_size": 4, "learning_rate": 0.01, "validation_interval": 0, "trackers": []}
    defaults |= {"checkpoint_interval": 2, "lora": {"dropout": 0.1}}

    def launch(output, *arguments, **settings):
        path = write_run(model=str(base), output=str(tmp_path / output), **defaults | settings)
        result = CliRunner().invoke(main, ["launch", str(path), *arguments])
        assert result.exit_code == 0, result.stderr
        return tmp_path / output

    return launch


def losses(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] in ("train", "validation")]


def config(base, dataset, **settings):
    values = {"model": str(base), "dataset": str(dataset), "output": "o", "max_steps": 1, "method": "qlora"}
    return RunConfig(**values | settings)


def load(base, tiny_dataset, **settings):
    chosen = config(base, tiny_dataset, **settings)
    return load_model(chosen, settle_compute(chosen, torch.device("cpu")), open_dataset(str(tiny_dataset)))


@pytest.fixture(scope="module")
def dequantized(base, tiny_dataset, tmp_path_factory):
    """The base with every quantised weight as its 4 bits give it back."""
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM

    quantized = load(base, tiny_dataset)
    plain = AutoModelForCausalLM.from_pretrained(base)
    names = quantized_modules(quantized)
    assert len(names) == 2 * 7
    for name in names:
        weight = quantized.get_base_model().get_submodule(name).base_layer.weight
        plain.get_submodule(name).weight.data = dequantize_4bit(weight.data, weight.quant_state)
    path = tmp_path_factory.mktemp("dequantized") / "base"
    plain.save_pretrained(path)
    return path


def test_training_is_that_of_lora_on_the_dequantized_base(launch, base, dequantized):
    quantized, reference = launch("quantized", method="qlora"), launch("reference", f"model={dequantized}")
    assert losses(quantized) == pytest.approx(losses(reference), rel=1e-5)
    assert losses(quantized) != pytest.approx(losses(launch("unquantized")), rel=1e-4)


def test_a_resume_is_bit_for_bit(launch):
    run_dir = launch("run", method="qlora")
    whole = losses(run_dir)
    final = (run_dir / "final" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run_dir / "final")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000004")
    launch("run", "--resume", method="qlora")
    assert losses(run_dir) == whole
    assert (run_dir / "final" / "adapter_model.safetensors").read_bytes() == final


@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("fp4", False)])
def test_the_record_beside_the_adapter_says_how_the_base_was_quantised(launch, kind, double):
    run_dir = launch("run", method="qlora", max_steps=1, quantization={"type": kind, "double_quant": double})
    for directory in (run_dir / "final", run_dir / "checkpoints" / "step-00000001" / "model"):
        record = json.loads((directory / "quantization.json").read_text())
        modules = record.pop("modules")
        assert record == {
            "format_version": "1",
            "type": kind,
            "block_size": 64,
            "double_quantization": double,
            "load_dtype": "float32",
        }
        assert "model.layers.0.self_attn.q_proj" in modules
        assert "lm_head" not in modules
    adapter = json.loads((run_dir / "final" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"].endswith("base")


def test_an_adapter_over_a_plain_base_has_no_record(launch):
    assert not (launch("run", max_steps=1) / "final" / "quantization.json").exists()


@pytest.mark.parametrize("double", [True, False])
def test_planned_bytes_are_those_that_bitsandbytes_takes(base, tiny_dataset, double):
    model = load(base, tiny_dataset, quantization={"double_quant": double})
    taken = weights = 0
    for name in quantized_modules(model):
        weight = model.get_base_model().get_submodule(name).base_layer.weight
        state = weight.quant_state
        taken += weight.data.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
        weights += state.shape.numel()
    # Each tensor rounds its second scales up.
    assert taken == pytest.approx(quantized_bytes(weights, double_quant=double), rel=0.02)


def test_layers_that_bitsandbytes_gets_wrong_on_a_cpu_are_refused(tiny_model, tiny_dataset):
    with pytest.raises(TrainError, match="is 32 wide, which bitsandbytes gets wrong on a CPU"):
        load(tiny_model, tiny_dataset)


def test_another_quantisation_is_another_run_and_fsdp_is_refused(launch, tmp_path):
    launch("run", method="qlora", max_steps=1)
    result = CliRunner().invoke(
        main, ["launch", str(tmp_path / "run.yaml"), "--resume", "--force", "quantization.type=fp4"]
    )
    assert result.exit_code == 1
    assert "quantization.type is 'fp4', the checkpoint was made with 'nf4'" in result.stderr
    arguments = ["launch", str(tmp_path / "run.yaml"), "distributed.engine=fsdp", "--processes", "2"]
    assert "method qlora does not run with fsdp" in CliRunner().invoke(main, arguments).stderr
