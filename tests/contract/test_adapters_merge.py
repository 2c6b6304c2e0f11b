"""What mft-train trains, mft-merge folds in exactly: every kind of adapter, quantised bases, the base's fingerprint."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mft_merge.cli import main as mft_merge
from mft_train.cli import main as mft_train

pytestmark = pytest.mark.usefixtures("released_shared_memory")
PROMPT = range(5, 25)


def command(main, *arguments) -> str:
    """The last line that a command prints, run in this process: to import the libraries anew takes longer than it."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()[-1]


@pytest.fixture
def trained(base_model, dataset, tmp_path):
    """The run directory of a few steps of a method."""

    def trained(settings, base=base_model):
        paths = f"model: {base}\ndataset: {dataset}\noutput: {tmp_path / 'run'}\n"
        rest = "max_steps: 3\nglobal_batch_size: 2\nlearning_rate: 1e-2\nvalidation_interval: 0\ntrackers: []\n"
        (tmp_path / "run.yaml").write_text(paths + rest + settings)
        command(mft_train, "launch", tmp_path / "run.yaml")
        return tmp_path / "run"

    return trained


def logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([list(PROMPT)])).logits


@pytest.fixture
def merged(tmp_path):
    """What mft-merge makes of a run, loaded."""

    def merged(run_dir):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(command(mft_merge, run_dir / "final", tmp_path / "merged"))

    return merged


LORA = [
    "{rslora: true}",
    "{dora: true}",
    "{modules_to_save: [embed_tokens]}",
    "{init: pissa}",
]


@pytest.mark.parametrize("lora", LORA)
def test_every_kind_of_adapter_is_merged_as_it_was_trained(trained, merged, base_model, lora):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run_dir = trained(f"lora: {lora}\n")
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_model), run_dir / "final")
    assert torch.allclose(logits(merged(run_dir)), logits(live), atol=1e-5)


def test_trained_biases_are_merged_as_they_were_trained(trained, merged, base_model, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    base, shape = Path(shutil.copytree(base_model, tmp_path / "biased")), AutoConfig.from_pretrained(base_model)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    settings = {name: getattr(shape, name) for name in (*names, "num_key_value_heads", "eos_token_id")}
    Qwen2ForCausalLM(Qwen2Config(**settings)).save_pretrained(base)
    run_dir = trained("lora: {bias: lora_only, lora_bias: true, target_modules: '.*[qkv]_proj'}\n", base)
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run_dir / "final")
    assert torch.allclose(logits(merged(run_dir)), logits(live), atol=1e-5)


@pytest.fixture
def wide_base(base_model, tmp_path):
    """A base with the same tokenizer whose rows are whole blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = Path(shutil.copytree(base_model, tmp_path / "wide"))
    config = LlamaConfig.from_pretrained(base_model)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("double", ["true", "false"])
def test_an_adapter_over_a_quantised_base_is_merged_into_what_it_was_trained_on(trained, merged, wide_base, double):
    import torch
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = f"quantization: {{type: nf4, double_quant: {double}}}\n"
    run_dir = trained(f"method: qlora\n{quantization}", wide_base)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double == "true",
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        wide_base, dtype=torch.float32, quantization_config=settings, device_map={"": "cpu"}
    )
    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # its packed weights are coarser
    live = PeftModel.from_pretrained(base, run_dir / "final")
    assert torch.allclose(logits(merged(run_dir)), logits(live), atol=1e-4)


def test_an_adapter_over_8_bits_is_merged_into_what_it_was_trained_on(trained, merged, base_model):
    import torch
    from bitsandbytes.nn import Linear8bitLt
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    run_dir = trained("method: qlora\nquantization: {type: int8}\n")
    settings = BitsAndBytesConfig(load_in_8bit=True)
    quantized = AutoModelForCausalLM.from_pretrained(
        base_model, dtype=torch.float32, quantization_config=settings, device_map={"": "cpu"}
    )
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    layers = {name: module for name, module in quantized.named_modules() if isinstance(module, Linear8bitLt)}
    assert layers
    for name, layer in layers.items():
        base.get_submodule(name).weight.data = layer.weight.data * (layer.weight.SCB / 127)[:, None]
    full = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    given, of_full = (logits(PeftModel.from_pretrained(model, run_dir / "final")) for model in (base, full))
    found = logits(merged(run_dir))
    assert torch.allclose(found, given, atol=1e-5)
    assert not torch.allclose(found, of_full, atol=1e-4)


def test_an_adapter_is_not_merged_into_another_base(run, trained, base_model, tmp_path):
    from safetensors.torch import load_file, save_file

    run_dir = trained("")
    other = shutil.copytree(base_model, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    done = run(f"mft-merge {run_dir / 'final'} {tmp_path / 'merged'} --base {other}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "the base model is not the one that the adapter was trained on" in done.stderr
    assert run(f"mft-merge {run_dir / 'final'} {tmp_path / 'merged'} --base {base_model}").returncode == 0
