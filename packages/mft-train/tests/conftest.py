"""A tiny random model and a small dataset directory, made with the real libraries."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tiny model gains nothing from threads, a busy machine loses much

import atexit
import contextlib
import gc
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

VOCABULARY = 97


def write_tiny_model(path: Path, **settings) -> Path:
    """A two-layer random Llama with grouped-query attention, as a Hugging Face directory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
    }
    LlamaForCausalLM(LlamaConfig(**shape | settings)).save_pretrained(path)
    return path


def write_tokenizer(path: Path) -> None:
    """A word-level tokenizer with a chat template: training only copies it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="w1", unk_token="w0"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(path)


def random_row(generator: np.random.Generator, seq_length: int) -> dict[str, np.ndarray]:
    """A row of a few conversations, each with an unsupervised prompt and a supervised answer."""
    lengths = []
    while sum(lengths) + 4 <= seq_length and len(lengths) < 4:
        lengths.append(int(generator.integers(4, min(16, seq_length - sum(lengths)) + 1)))
    masks = [np.arange(length) >= generator.integers(1, length) for length in lengths]
    return {
        "input_ids": generator.integers(0, VOCABULARY, size=sum(lengths)).astype(np.uint16),
        "loss_mask": np.concatenate(masks).astype(np.uint8),
        "segment_lengths": np.array(lengths, dtype=np.uint32),
    }


def write_dataset(
    path: Path, rows: dict[str, tuple[int, int]], seq_length: int = 48, shard_bytes: int = 1 << 26
) -> Path:
    """A dataset directory with (training rows, validation rows) of random tokens for every task."""
    from streaming import MDSWriter

    columns = {
        "input_ids": "ndarray:uint16",
        "loss_mask": "ndarray:uint8",
        "segment_lengths": "ndarray:uint32",
        "task_id": "int32",
    }
    generator = np.random.default_rng(7)
    tasks = []
    for task_id, (name, counts) in enumerate(rows.items()):
        splits = {}
        for split, count in zip(("train", "validation"), counts, strict=True):
            samples = [random_row(generator, seq_length) for _ in range(count)]
            if samples:
                with MDSWriter(
                    out=str(path / split / name), columns=columns, hashes=["sha256"], size_limit=shard_bytes
                ) as writer:
                    for sample in samples:
                        writer.write(sample | {"task_id": np.int32(task_id)})
            index = path / split / name / "index.json"
            splits[split] = {
                "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest() if samples else None,
                "conversations": sum(len(sample["segment_lengths"]) for sample in samples),
                "rows": count,
                "tokens": sum(len(sample["input_ids"]) for sample in samples),
                "supervised_tokens": int(sum(sample["loss_mask"].sum() for sample in samples)),
            }
        tasks.append({"name": name, "task_id": task_id, "splits": splits})
    write_tokenizer(path / "tokenizer")
    manifest = {
        "format_version": "1",
        "producer": "mft-data 0.1.0",
        "seq_length": seq_length,
        "max_token_id": VOCABULARY - 1,
        "tokenizer_files": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted((path / "tokenizer").iterdir())
        },
        "tasks": tasks,
    }
    digest = hashlib.sha256((json.dumps(manifest, indent=2) + "\n").encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest | {"content_sha256": digest}, indent=2) + "\n")
    return path


@pytest.fixture(scope="module", autouse=True)
def released_shared_memory():
    """Gives back what streaming holds until its process ends: runs in this process would pile up open files."""
    yield
    if "streaming" in sys.modules:
        from streaming.base.shared.memory import SharedMemory

        for held in [thing for thing in gc.get_objects() if type(thing) is SharedMemory]:
            with contextlib.suppress(BufferError):
                held.cleanup()
                atexit.unregister(held.cleanup)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("dataset") / "dataset"
    return write_dataset(path, {"large": (23, 5), "small": (6, 2)})


@pytest.fixture(scope="session")
def make_row():
    return random_row


@pytest.fixture(scope="session")
def make_dataset():
    return write_dataset


@pytest.fixture(scope="session")
def make_model():
    return write_tiny_model


@pytest.fixture
def write_run(tmp_path, tiny_model, tiny_dataset):
    """Writes the config of a run of the tiny model on the tiny dataset into `tmp_path`."""
    import yaml

    def write_run(**settings) -> Path:
        values = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": str(tmp_path / "run")}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values | settings))
        return path

    return write_run


@pytest.fixture
def other_precision():
    """Lets runs in this process compute in types of their own: accelerate keeps the first for all."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Server:
    """A program that has imported everything once and forks what is asked for by a line of JSON."""

    def __init__(self, program, environment=None, machine=None):
        command = [sys.executable, str(Path(__file__).parent / "running" / program)]
        command = machine.command(command) if machine else command
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self):
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


class RankServer(Server):
    """Runs the ranks of a command, of this machine or of another; rank_server.py says what else can be asked for."""

    def __init__(self, environment=None, machine=None):
        super().__init__("rank_server.py", environment, machine)

    def start(self, ranks, printed, arguments, **request) -> None:
        """Starts ranks that print into a file."""
        self.ask(request | {"arguments": [*map(str, arguments)], "ranks": ranks, "output": str(printed)})

    def run(self, ranks, printed, arguments, **request) -> list[int]:
        """The exit codes of ranks that print into a file."""
        self.start(ranks, printed, arguments, **request)
        return self.answer()


class CommandServer(Server):
    """Runs launches one after the other, without the imports of each, on this machine or on another."""

    def __init__(self, log, environment=None, machine=None):
        super().__init__("command_server.py", environment, machine)
        self.log = log

    def start(self, *arguments, **environment) -> int:
        """The process id of a new run, which leads a process group."""
        request = {"arguments": ["launch", *map(str, arguments)], "log": str(self.log), "environment": environment}
        self.ask(request)
        return self.answer()

    def wait(self) -> int:
        """The exit code of the run."""
        return self.answer()


@pytest.fixture(scope="module")
def start_server():
    """Starts servers of a class, which end with the tests of the module."""
    with contextlib.ExitStack() as stack:

        def start_server(kind, *arguments):
            server = {"ranks": RankServer, "commands": CommandServer}[kind](*arguments)
            stack.callback(server.close)
            return server

        yield start_server


@pytest.fixture(scope="module")
def measuring_server(start_server):
    """A server of ranks that give memory back once it is freed, so that only what is in use counts."""
    return start_server("ranks", os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"})


@pytest.fixture(scope="module")
def rank_server(start_server):
    return start_server("ranks")
