"""How a model is loaded: devices, threads, rounded weights."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from mft_infer.errors import InferError
from mft_infer.model import device as device_module
from mft_infer.model.device import find_device, num_cores
from mft_infer.model.language_model import load_language_model
from mft_infer.settings import ModelSettings

pytestmark = pytest.mark.whole


def test_auto_is_the_cpu_where_there_is_nothing_else():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert find_device("auto").type == expected
    with pytest.raises(InferError, match="unknown device"):
        find_device("gpu7")


def test_cores_are_those_of_the_process_and_its_container(monkeypatch, tmp_path):
    allowed = len(os.sched_getaffinity(0))
    for text, expected in (("max 100000", allowed), ("100000 100000", 1), ("50000 100000", 1), ("", allowed)):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(device_module, "CPU_QUOTA", tmp_path / "cpu.max")
        assert num_cores() == expected


def test_torch_uses_no_more_threads_than_there_are_cores():
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    script += "from mft_infer.model.device import set_threads\nimport torch\n"
    ask = "torch.set_num_threads(3)\nset_threads()\nprint(torch.get_num_threads())\n"
    script += ask + 'os.environ["OMP_NUM_THREADS"] = "3"\n' + ask
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "3"]


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory, tokenizer):
    """A random Llama whose layers are wide enough for blocks of 4-bit weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    )
    directory = tmp_path_factory.mktemp("wide")
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_rounded_weights_are_near_the_model_and_smaller(quantization, wide_model):
    plain = load_language_model(str(wide_model), ModelSettings(device="cpu"))
    rounded = load_language_model(str(wide_model), ModelSettings(device="cpu", quantization=quantization))
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        expected, found = (loaded.model(ids).logits.flatten() for loaded in (plain, rounded))
    assert rounded.model.get_memory_footprint() < 0.6 * plain.model.get_memory_footprint()
    assert torch.corrcoef(torch.stack([expected, found]))[0, 1] > 0.9


def test_rounded_weights_say_nothing_for_every_token(complete, wide_model, caplog):
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)
    prompts = [{"problem_id": "a", "prompt": "x"}]
    complete(prompts, "--quantization", "8bit", "--max-new-tokens", 2, model=wide_model)
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]


def test_quantization_is_told_in_every_line(complete, wide_model):
    [entry] = complete(
        [{"problem_id": "a", "prompt": "x"}], "--quantization", "4bit", "--max-new-tokens", 2, model=wide_model
    )
    assert entry["run"]["settings"]["quantization"] == "4bit"
