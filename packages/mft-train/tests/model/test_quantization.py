"""An adapter over a quantised base: trained on what its bits give back, recorded for the merge, resumed exactly."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.config.adapter_config import QuantizationConfig
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
    """The base with every quantised weight as its bits give it back, by type."""
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM

    def dequantized(kind):
        quantized = load(base, tiny_dataset, quantization={"type": kind})
        plain = AutoModelForCausalLM.from_pretrained(base)
        names = quantized_modules(quantized)
        assert len(names) == 2 * 7
        for name in names:
            layer = quantized.get_base_model().get_submodule(name).base_layer
            if kind == "int8":
                weight = layer.weight.float() * layer.scales[:, None] / 127
            else:
                weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain.get_submodule(name).weight.data = weight
        path = tmp_path_factory.mktemp("dequantized") / "base"
        plain.save_pretrained(path)
        return path

    return dequantized


# What 8 bits lose of these weights is little.
KINDS = {"nf4": 1e-4, "int8": 1e-6}


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_lora_on_the_dequantized_base(launch, base, dequantized, kind):
    quantized = launch("quantized", method="qlora", quantization={"type": kind}, validation_interval=2)
    reference = launch("reference", f"model={dequantized(kind)}", validation_interval=2)
    assert losses(quantized) == pytest.approx(losses(reference), rel=1e-5)
    assert losses(quantized) != pytest.approx(losses(launch("unquantized", validation_interval=2)), rel=KINDS[kind])


def test_weights_in_8_bits_are_those_of_bitsandbytes(base, tiny_dataset):
    from transformers import AutoModelForCausalLM

    model = load(base, tiny_dataset, quantization={"type": "int8"})
    layer = model.get_base_model().get_submodule("model.layers.0.mlp.down_proj").base_layer
    exact = AutoModelForCausalLM.from_pretrained(base).get_submodule("model.layers.0.mlp.down_proj").weight
    assert (layer.weight.dtype, layer.weight.requires_grad) == (torch.int8, False)
    step = exact.abs().amax(dim=1, keepdim=True) / 127
    given = layer(torch.eye(layer.in_features)).T
    assert ((given - exact).abs() <= 0.51 * step + 1e-3 * exact.abs()).all(), "half a step, and float16's rounding"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_through_8_bits_is_that_of_the_weights_that_they_give(dtype):
    from bitsandbytes.nn import Linear8bitLt

    from mft_train.model.int8_linear import compute_exactly, given_back

    layer = Linear8bitLt(48, 40, has_fp16_weights=False).to("cpu")
    compute_exactly(layer, dtype)
    x = torch.randn(2, 5, 48, requires_grad=True)
    upstream = torch.randn(2, 5, 40)
    with torch.no_grad():
        weight = given_back(layer.weight, layer.scales, dtype)
    plain = torch.nn.functional.linear(x.to(dtype), weight).float() + layer.bias
    (expected,) = torch.autograd.grad(plain, x, upstream)
    (found,) = torch.autograd.grad(layer(x), x, upstream)
    assert layer(x).dtype == torch.float32
    assert torch.allclose(layer(x), plain, atol=1e-6)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_is_bit_for_bit(launch, kind):
    chosen = {"method": "qlora", "quantization": {"type": kind}}
    run_dir = launch("run", **chosen)
    whole = losses(run_dir)
    final = (run_dir / "final" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run_dir / "final")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000004")
    launch("run", "--resume", **chosen)
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


def test_the_record_of_a_base_in_8_bits(launch):
    final = launch("run", method="qlora", max_steps=1, quantization={"type": "int8"}) / "final"
    record = json.loads((final / "quantization.json").read_text())
    assert len(record.pop("modules")) == 2 * 7
    assert record == {"format_version": "1", "type": "int8", "load_dtype": "float32"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": {"type": "int8", "double_quant": False}}, "double_quant has no effect with type int8"),
        ({"quantization": {"type": "int8"}, "lora": {"dora": True}}, "lora.dora does not go with quantization.type"),
    ],
)
def test_settings_that_8_bits_do_not_have_are_refused(base, tiny_dataset, settings, message):
    with pytest.raises(ValueError, match=message):
        config(base, tiny_dataset, **settings)


def test_an_adapter_over_a_plain_base_has_no_record(launch):
    assert not (launch("run", max_steps=1) / "final" / "quantization.json").exists()


@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("nf4", False), ("int8", True)])
def test_planned_bytes_are_those_that_bitsandbytes_takes(base, tiny_dataset, kind, double):
    settings = {"type": kind, "double_quant": double}
    model = load(base, tiny_dataset, quantization=settings)
    taken, shapes = 0, []
    for name in quantized_modules(model):
        layer = model.get_base_model().get_submodule(name).base_layer
        taken += layer.weight.data.nbytes
        if kind == "int8":
            taken += layer.scales.nbytes
        else:
            state = layer.weight.quant_state
            taken += state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
        shapes.append((layer.out_features, layer.in_features))
    # Each tensor rounds its second scales up.
    assert taken == pytest.approx(quantized_bytes(shapes, QuantizationConfig(**settings)), rel=0.02)


def test_layers_that_bitsandbytes_gets_wrong_on_a_cpu_are_refused(tiny_model, tiny_dataset):
    with pytest.raises(TrainError, match="is 32 wide, which bitsandbytes gets wrong on a CPU"):
        load(tiny_model, tiny_dataset)
    load(tiny_model, tiny_dataset, quantization={"type": "int8"})


def test_another_quantisation_is_another_run(launch, tmp_path):
    launch("run", method="qlora", max_steps=1)
    result = CliRunner().invoke(
        main, ["launch", str(tmp_path / "run.yaml"), "--resume", "--force", "quantization.type=fp4"]
    )
    assert result.exit_code == 1
    assert "quantization.type is 'fp4', the checkpoint was made with 'nf4'" in result.stderr
