"""What is written means the same to transformers 4.57 as to transformers 5: the logits of every family are equal.

Version 5 renamed keys of the configs (`rope_parameters`, `dtype`, `extra_special_tokens`, ...), and version 4.57
silently takes its defaults for what it does not find.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from mft_merge.cli import main as mft_merge
from mft_train.cli import main as mft_train

ROOT = Path(__file__).parents[2]
OLD = ("transformers==4.57.6", "tokenizers==0.22.1", "huggingface-hub==0.36.0")
SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
MIXED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}


def rope(theta: float, **more) -> dict:
    """A value of `rope_parameters`."""
    return {"rope_theta": theta, "rope_type": "default"} | more


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Model type, options beside SIZES: every one has a rope base that is no default.
FAMILIES = {
    "llama": ("llama", {"rope_parameters": rope(5e5)}),
    "llama-tied": ("llama", {"rope_parameters": rope(5e5), "tie_word_embeddings": True}),
    "llama-llama3": ("llama", {"rope_parameters": rope(5e5, **LLAMA3)}),
    "llama-linear": ("llama", {"rope_parameters": rope(2e4, rope_type="linear", factor=4.0)}),
    "qwen2": ("qwen2", {"rope_parameters": rope(1e6), "use_sliding_window": True, "sliding_window": 8}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": rope(1e6, **YARN)}),
    "qwen3": ("qwen3", {"rope_parameters": rope(1e6), "head_dim": 8}),
    "mistral": ("mistral", {"rope_parameters": rope(1e6), "sliding_window": 8}),
    "phi3": ("phi3", {"rope_parameters": rope(3e4, partial_rotary_factor=0.5), "pad_token_id": 0}),
    "gemma2": ("gemma2", {"rope_parameters": rope(3e4), "head_dim": 8, "sliding_window": 8}),
    "gemma3": (
        "gemma3_text",
        MIXED
        | {
            "head_dim": 8,
            "rope_parameters": {
                "full_attention": rope(1e6, rope_type="linear", factor=8.0),
                "sliding_attention": rope(2e4),
            },
        },
    ),
    "olmo3": (
        "olmo3",
        MIXED | {"rope_parameters": {"full_attention": rope(3e5, **YARN), "sliding_attention": rope(3e5)}},
    ),
    "starcoder2": ("starcoder2", {"rope_parameters": rope(1e6)}),
    "stablelm": ("stablelm", {"rope_parameters": rope(3e4, partial_rotary_factor=0.5)}),
    "smollm3": ("smollm3", {"rope_parameters": rope(3e4), "pad_token_id": 0}),
    "gpt-neox": ("gpt_neox", {"rope_parameters": rope(3e4, partial_rotary_factor=0.5)}),
    "gpt2": ("gpt2", {}),
    "mixtral": ("mixtral", {"rope_parameters": rope(3e4), "num_local_experts": 4}),
    "qwen2-moe": (
        "qwen2_moe",
        EXPERTS | {"rope_parameters": rope(3e4), "shared_expert_intermediate_size": 24},
    ),
    "qwen3-moe": ("qwen3_moe", EXPERTS | {"rope_parameters": rope(3e4), "head_dim": 8}),
    "deepseek-v3": (
        "deepseek_v3",
        ROUTED | LATENT | {"rope_parameters": rope(3e4), "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "gpt-oss": (
        "gpt_oss",
        {"rope_parameters": rope(2e5, **YARN, truncate=False), "num_local_experts": 4, "head_dim": 8},
    ),
}


@pytest.fixture(scope="session")
def old_transformers() -> Path:
    """A folder for PYTHONPATH with transformers 4.57 and what it needs in other versions than the environment's."""
    folder = ROOT / ".cache" / "transformers-4.57"
    if not (folder / "transformers").is_dir():
        script = '. tools/find_uv.sh; exec "$UV" pip install --quiet --no-config --no-deps --target "$0" --python "$@"'
        partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
        command = ["bash", "-c", script, str(partial), sys.executable, *OLD]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"transformers 4.57 cannot be installed here: {done.stderr.strip()[-300:]}")
        partial.rename(folder)
    return folder


def make_base(name: str, path: Path, tokenizer):
    """A random model of the family, whose every weight matters for its logits; saved at `path`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    kind, options = FAMILIES[name]
    config = AutoConfig.for_model(kind, **(SIZES | {"eos_token_id": 256, "bos_token_id": None} | options))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.generation_config = GenerationConfig(eos_token_id=[256, 3], pad_token_id=0, do_sample=True, temperature=0.7)
    model.save_pretrained(path)
    model.name_or_path = str(path)  # so that an adapter names it
    if kind == "llama":  # for some other families version 5 puts a tokenizer class of its own in the place of any
        tokenizer.save_pretrained(path)
    return model


def make_adapter(model, adapter: Path) -> Path:
    """A random LoRA adapter of the model, on all linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    adapted.save_pretrained(adapter)
    return adapter


@pytest.fixture(scope="session")
def byte_tokenizer():
    """The 256 bytes, an EOS, two more special tokens and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}bot:"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>", "<y>"]})
    return tokenizer


def read_with(path: Path | None, folder: Path, out: Path) -> tuple[dict, dict]:
    """Logits and facts of every model in the folder, by the transformers of `path` or of the environment."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    outputs = [out.with_suffix(".npz"), out.with_suffix(".json")]
    command = [sys.executable, ROOT / "tests/contract/write_logits.py", folder, *outputs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    import numpy as np

    return dict(np.load(outputs[0])), json.loads(outputs[1].read_text())


def at_once(*calls):
    """The results of calls that wait for processes of their own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


@pytest.mark.slow
def test_every_merged_family_is_the_same_model_to_both(old_transformers, byte_tokenizer, tmp_path):
    for name in FAMILIES:
        base = make_base(name, tmp_path / "bases" / name, byte_tokenizer)
        adapter = make_adapter(base, tmp_path / "adapters" / name)
        done = CliRunner().invoke(mft_merge, [str(adapter), str(tmp_path / "merged" / name)])
        assert done.exit_code == 0, f"{name}: {done.output}"
    (old_logits, old_facts), (new_logits, new_facts) = at_once(
        lambda: read_with(old_transformers, tmp_path / "merged", tmp_path / "old"),
        lambda: read_with(None, tmp_path / "merged", tmp_path / "new"),
    )
    assert old_facts.pop("version").startswith("4.57")
    assert new_facts.pop("version").startswith("5.")
    assert old_facts == new_facts
    assert old_logits.keys() == new_logits.keys() == set(FAMILIES)
    differences = {name: abs(old_logits[name] - new_logits[name]).max() for name in FAMILIES}
    assert max(differences.values()) < 1e-4, differences


@pytest.mark.slow
@pytest.mark.usefixtures("released_shared_memory")
def test_a_full_fine_tune_is_written_for_both(base_model, dataset, tmp_path):
    settings = "method: full\nmax_steps: 1\nglobal_batch_size: 2\nlearning_rate: 1e-3\nvalidation_interval: 0\n"
    paths = f"model: {base_model}\ndataset: {dataset}\noutput: {tmp_path / 'run'}\n"
    (tmp_path / "run.yaml").write_text(paths + settings)
    done = CliRunner().invoke(mft_train, ["launch", str(tmp_path / "run.yaml")])
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    tokenizer_config = json.loads((tmp_path / "run" / "final" / "tokenizer_config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert tokenizer_config["tokenizer_class"] != "TokenizersBackend"


@pytest.mark.slow
def test_generations_are_the_same_with_both(run, old_transformers, base_model, tmp_path):
    """Rows that leave and join, prompts shared by samples, long rows that leave: all that is done to a cache."""
    model = shutil.copytree(base_model, tmp_path / "model")
    tokenizer_config = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"  # version 5 has a new name for it
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    contents = [f"number {number} " * (1 + number % 4) for number in range(6)]
    lines = [json.dumps({"problem_id": content, "prompt": content}) for content in contents]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    options = "--num-samples 3 --batch-size 4 --temperature 1 --max-new-tokens 12 --device cpu"
    command = f"mft-infer generate {model} {tmp_path}/prompts.jsonl - {options}"
    new, old = at_once(lambda: run(command), lambda: run(f"PYTHONPATH={old_transformers} {command}"))
    assert (new.returncode, old.returncode) == (0, 0), new.stderr + old.stderr
    assert len(new.stdout.splitlines()) == 18
    assert old.stdout == new.stdout
