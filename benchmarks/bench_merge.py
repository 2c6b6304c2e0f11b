"""mft-merge against PEFT's own merge and against copying the files: whole commands, each in its own process, by turns.

The base is a random Llama of 2.2 GB in bfloat16 and five shards, the adapter has rank 16 on all linear layers; a base
of twice the depth shows whether memory grows with the model.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

ROUNDS = int(os.environ.get("BENCHMARK_ROUNDS", "3"))
NUM_LAYERS = 22
NUM_SHARDS = 5
RANK = 16
SIZES = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4}
POLL_SECONDS = 0.01
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out, dtype = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), trust_remote_code=False)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""
COPY = """
import os, shutil, sys
shutil.copytree(sys.argv[1], sys.argv[2])
for entry in os.scandir(sys.argv[2]):
    with open(entry.path, "rb") as stream:
        os.fsync(stream.fileno())
"""
IMPORT = "import torch; print([line.split()[1] for line in open('/proc/self/status') if line.startswith('RssAnon')][0])"
pytestmark = pytest.mark.timeout(3600)


def make_base(folder: Path, num_layers: int) -> Path:
    """A random Llama, written shard by shard."""
    config = LlamaConfig(vocab_size=32000, num_hidden_layers=num_layers, dtype="bfloat16", **SIZES)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    torch.manual_seed(0)
    names = list(shapes)
    weight_map = {}
    for index in range(NUM_SHARDS):
        shard = f"model-{index + 1:05d}-of-{NUM_SHARDS:05d}.safetensors"
        chosen = names[index * len(names) // NUM_SHARDS : (index + 1) * len(names) // NUM_SHARDS]
        tensors = {name: torch.randn(shapes[name], dtype=torch.bfloat16) * 0.02 for name in chosen}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, shard)
    index_path = folder / "model.safetensors.index.json"
    index_path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def make_adapter(folder: Path, base: Path) -> Path:
    """A random adapter on all linear layers."""
    options = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    LoraConfig(base_model_name_or_path=str(base), **options).save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(base))
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, module.in_features) * 0.02
            tensors[f"{key}.lora_B.weight"] = torch.randn(module.out_features, RANK) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{number of layers: (base, adapter)}."""
    made = {}
    for num_layers in (NUM_LAYERS, 2 * NUM_LAYERS):
        folder = tmp_path_factory.mktemp(f"layers-{num_layers}")
        base = make_base(folder / "base", num_layers)
        made[num_layers] = base, make_adapter(folder / "adapter", base)
    yield made
    for base, _ in made.values():
        shutil.rmtree(base.parent)


def measured(command: list, out: Path) -> tuple[float, float]:
    """(wall seconds, peak anonymous memory in MB) of a command, which must succeed; `out` is removed.

    The disk first gets what it is still to write: no command pays for what another has left to it.
    """
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))])
        except OSError:
            pass
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - began
    assert process.returncode == 0, process.stderr.read().decode()[-2000:]
    shutil.rmtree(out)
    return seconds, peak / 1000


def test_merging_by_turns(models, tmp_path, report):
    out = tmp_path / "out"
    base, adapter = models[NUM_LAYERS]
    command = Path(sys.executable).with_name("mft-merge")
    contenders = {
        "copy": [sys.executable, "-c", COPY, base, out],
        "peft": [sys.executable, "-c", PEFT, base, adapter, out, "bfloat16"],
        "mft-merge": [command, adapter, out],
        "mft-merge, twice the depth": [command, models[2 * NUM_LAYERS][1], out],
    }
    imported = int(subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True).stdout) / 1000
    seconds, memory = ({name: [] for name in contenders} for _ in range(2))
    for _ in range(ROUNDS):
        for name, words in contenders.items():
            wall, peak = measured(words, out)
            seconds[name].append(wall)
            memory[name].append(peak - imported)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    for name in contenders:
        report(f"{name}: whole command", f"{median[name]:.1f} s")
        goal = "at most 150 MB" if name.startswith("mft") else ""
        report(f"{name}: peak anonymous memory beyond importing torch", f"{max(memory[name]):.0f} MB", goal)
    report("mft-merge / peft", f"{median['mft-merge'] / median['peft']:.2f}", "at most 0.3")
    report("mft-merge / copy", f"{median['mft-merge'] / median['copy']:.2f}")
