"""Makes what the comparison of balancers starts from: a small model that knows some Python, and six unequal tasks.

    python benchmarks/balancing/prepare.py DATA OUT [--base MODEL] [--validation 32] [--test 60]

DATA holds the folders code-instruct, code-translate and python-problems; the other three tasks are those that
tools/make_demo_tasks.py makes; they are 100 to 1 in size. OUT gets `base/`, a llama of 2.6 million parameters with a
tokenizer of 4,096 tokens of its own, first trained on the tests of this Python's standard library, which no task is cut
from; `dataset/` with training and validation rows; and `test/`, whose training rows are the test split, which no run
sees. With --base, `base/` is that model instead, and its tokenizer encodes the tasks.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
# Training conversations of each task; validation and test have others, up to --validation and --test of them.
SIZES = {
    "code-translate": 1000,
    "docstring-to-code": 400,
    "code-instruct": 160,
    "code-completion": 60,
    "code-to-docstring": 25,
    "python-problems": 10,
}
VOCABULARY, CONTEXT, SEQ_LENGTH, TEXT_BYTES = 4096, 512, 256, 12_000_000
END = "<|endoftext|>"
PRETRAINING = {
    "method": "full",
    "max_steps": 450,
    "global_batch_size": 16,
    "micro_batch_size": 4,
    "learning_rate": 2e-3,
}


def run(*command):
    """With one thread, so that the bits of the base do not depend on the number of cores."""
    print("$", *command, flush=True)
    subprocess.run(list(map(str, command)), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def library_text():
    """Python of the standard library's own tests, some megabytes of it, file by file."""
    folder = Path(sysconfig.get_paths()["stdlib"]) / "test"
    size = 0
    for path in sorted(folder.rglob("*.py")):
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        size += len(text)
        if size > TEXT_BYTES:
            return
        yield text


def make_base(out):
    """The tokenizer, a random model, and its first training."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    texts = list(library_text())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    random = out / "random"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(random)
    set_seed(0)
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 3}
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, tie_word_embeddings=True, eos_token_id=0, **shape
    )
    LlamaForCausalLM(config).save_pretrained(random)
    step = 3 * CONTEXT  # characters: about a row of tokens
    pieces = [text[start : start + step] for text in texts for start in range(0, len(text), step)]
    write_lines(out / "text" / "library" / "part.jsonl", [{"text": piece} for piece in pieces if piece.strip()])
    options = ("--tokenizer", random, "--seq-length", CONTEXT, "--validation", 0.005)
    run("mft-data", "build", out / "text" / "library", out / "text-dataset", *options)
    settings = {"model": random, "dataset": out / "text-dataset", "output": out / "pretraining"}
    values = {name: str(value) for name, value in settings.items()} | PRETRAINING
    config_path = out / "pretraining.yaml"
    config_path.write_text(yaml.safe_dump(values))
    run("mft-train", "launch", config_path)
    (out / "pretraining" / "final").rename(out / "base")


def by_content(line):
    return hashlib.sha256(line.encode()).digest()


def make_datasets(data, out, num_validation, num_test):
    """Both datasets from disjoint conversations, chosen by a hash of what they say."""
    run(sys.executable, ROOT / "tools" / "make_demo_tasks.py", out / "demo")
    tasks, test_paths = {}, []
    for name, size in SIZES.items():
        folder = next(path for path in (data / name, out / "demo" / "tasks" / name) if path.is_dir())
        lines = {line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()}
        ordered = [json.loads(line) for line in sorted(lines, key=by_content)]
        rest = ordered[size:]
        test = rest[: min(num_test, len(rest) // 2)]
        write_lines(out / "tasks" / name / "train.jsonl", ordered[:size])
        write_lines(out / "tasks" / name / "validation.jsonl", rest[len(test) :][:num_validation])
        write_lines(out / "test-tasks" / name / "test.jsonl", test)
        sources = {"paths": "train.jsonl", "validation": ["validation.jsonl"]}
        place = out / "tasks" / name
        tasks[name] = {
            "paths": [str(place / sources["paths"])],
            "validation": [str(place / path) for path in sources["validation"]],
        }
        test_paths.append(out / "test-tasks" / name)
    (out / "tasks.yaml").write_text(yaml.safe_dump({"tasks": tasks}, sort_keys=False))
    options = ("--tokenizer", out / "base", "--seq-length", SEQ_LENGTH)
    run("mft-data", "build", out / "tasks.yaml", out / "dataset", *options)
    run("mft-data", "build", *test_paths, out / "test", *options)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, help="a model directory, in place of one that is made")
    parser.add_argument("--validation", type=int, default=32, help="most conversations of a task")
    parser.add_argument("--test", type=int, default=60, help="most conversations of a task")
    arguments = parser.parse_args()
    base = arguments.out / "base"
    if not base.exists():
        if arguments.base:
            arguments.out.mkdir(parents=True, exist_ok=True)
            base.symlink_to(arguments.base.resolve())
        else:
            make_base(arguments.out)
    make_datasets(arguments.data, arguments.out, arguments.validation, arguments.test)


if __name__ == "__main__":
    main()
