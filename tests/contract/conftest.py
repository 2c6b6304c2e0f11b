"""A tiny base model and task folders for the contract tests, and a way to run the real commands."""

import atexit
import contextlib
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "<s>human\nComplete this Python function.\n<s>bot\n```python\nfor index in range(10):\n    print(index)\n```",
]


@pytest.fixture(scope="session")
def run():
    """Runs one shell line with the real commands on PATH; returns the finished process."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}

    def run(line: str, **options) -> subprocess.CompletedProcess:
        command = ["bash", "-o", "pipefail", "-c", line]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, check=False, **options
        )

    return run


@pytest.fixture
def released_shared_memory():
    """Gives back what streaming holds until its process ends, where a test trains in this one."""
    yield
    from streaming.base.shared.memory import SharedMemory

    for held in [thing for thing in gc.get_objects() if type(thing) is SharedMemory]:
        with contextlib.suppress(BufferError):
            held.cleanup()
            atexit.unregister(held.cleanup)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory) -> Path:
    """A two-layer random Llama with a byte-level tokenizer, EOS and a chat template of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("base") / "base"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>", "<|pad|>"], initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"eos_token_id": 0, "pad_token_id": 1, "bos_token_id": None}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **shape,
        **ids,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def task_folders(tmp_path_factory) -> Path:
    """Two task folders of very unequal size, small enough to be learned by heart."""
    root = tmp_path_factory.mktemp("tasks")
    answers = {"add": "return a + b", "subtract": "return a - b"}
    for task, count in (("completion", 60), ("explain", 12)):
        (root / task).mkdir()
        lines = []
        for index in range(count):
            name = list(answers)[index % 2]
            human = f"Complete number {index}: def {name}(a, b):"
            bot = f"```python\ndef {name}(a, b):\n    {answers[name]}\n```"
            rounds = [{"role": "human", "content": human}, {"role": "bot", "content": bot}]
            lines.append(json.dumps({"id": index, "data_name": task, "chat_rounds": rounds}))
        (root / task / "part-000.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def problems(tmp_path_factory) -> Path:
    """Two HumanEval-shaped problems."""
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    lines = []
    for name, sign in (("add", "+"), ("subtract", "-")):
        problem = {
            "task_id": f"Tiny/{name}",
            "prompt": f'def {name}(a, b):\n    """Return a {sign} b."""\n',
            "entry_point": name,
            "canonical_solution": f"    return a {sign} b\n",
            "test": f"def check(candidate):\n    assert candidate(5, 3) == 5 {sign} 3\n",
        }
        lines.append(json.dumps(problem))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def dataset(run, base_model, task_folders, tmp_path_factory) -> Path:
    """What the real mft-data makes of the task folders."""
    out = tmp_path_factory.mktemp("data") / "dataset"
    sources = f"{task_folders}/completion {task_folders}/explain"
    done = run(f"mft-data build {sources} {out} --tokenizer {base_model} --seq-length 256 --validation 0.1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    return out


@pytest.fixture(scope="session")
def lora_run(run, base_model, dataset, tmp_path_factory) -> Path:
    """The run directory of a real mft-train, LoRA."""
    folder = tmp_path_factory.mktemp("train")
    config = f"model: {base_model}\ndataset: {dataset}\noutput: {folder / 'run'}\n"
    settings = (
        "max_steps: 12\nglobal_batch_size: 2\nlearning_rate: 1e-2\nvalidation_interval: 0\ncheckpoint_interval: 12\n"
    )
    (folder / "run.yaml").write_text(config + settings)
    done = run(f"mft-train launch {folder / 'run.yaml'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / 'run' / 'final'}\n"
    return folder / "run"


@pytest.fixture(scope="session")
def merged_model(run, lora_run, tmp_path_factory) -> Path:
    """What the real mft-merge makes of the run."""
    out = tmp_path_factory.mktemp("merge") / "merged"
    done = run(f"mft-merge {lora_run / 'final'} {out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    return out
