"""mft-data against its tokenizer alone, against TRL and a per-conversation loop, and against streaming's own reading.

Every rate is in tokens of the finished rows per second; each ratio is of rates measured in this run. Where two things
run turn about, it is the median of the ratios of the turns.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from mft_data.commands.build import RunOptions, build
from mft_data.dataset.output import FolderOutput
from mft_data.encoding.encoder import make_encoder
from mft_data.encoding.special_tokens import plain_config, renamed_config
from mft_data.execution.plan import BuildOptions, all_sources, make_plan
from mft_data.filters.duplicates import NUM_HASHES, Duplicates
from mft_data.reading.fetched import Fetched
from mft_data.reading.records import MaxRejects, parse_line

# A build on a busy machine takes longer than a test may.
pytestmark = pytest.mark.timeout(7200)

SEQ_LENGTH = 2048
# BENCHMARK_MIB is for a first look: short builds are mostly the start of their workers.
BUILD_BYTES = int(os.environ.get("BENCHMARK_MIB", "96")) << 20
WORKERS = 2


def options_for(base_model):
    return BuildOptions(
        tokenizer_dir=base_model,
        seq_length=SEQ_LENGTH,
        template="mft",
        eos_token=None,
        role_markers={},
        validation_fraction=0.02,
        validation_sources=(),
        packing="best-fit",
        overlong="drop",
        seed=0,
        record_format=None,
        fields={},
        train_on="all",
        limit=None,
        max_rejects=MaxRejects(),
        is_strict=False,
        dedup="none",
        decontaminate=(),
        contaminated="drop",
    )


@pytest.fixture(scope="module")
def large(task_files, tmp_path_factory):
    """The tasks, each repeated until all of them are BUILD_BYTES of JSONL together."""
    return repeated(task_files, tmp_path_factory.mktemp("large"), BUILD_BYTES)


@pytest.fixture(scope="module")
def half(task_files, tmp_path_factory):
    """Half of that, for builds that are compared with builds."""
    return repeated(task_files, tmp_path_factory.mktemp("half"), BUILD_BYTES // 2)


def repeated(task_files, root, num_bytes):
    """Folders of the tasks, repeated until they are so many bytes together."""
    total = sum(path.stat().st_size for files in task_files.values() for path in files)
    for task, files in task_files.items():
        (root / task).mkdir()
        for copy in range(-(-num_bytes // total)):
            for path in files:
                shutil.copyfile(path, root / task / f"{copy:03}-{path.name}")
    return [str(root / task) for task in task_files]


@pytest.fixture(scope="module")
def lines(task_files):
    """The lines of all tasks."""
    return [line for files in task_files.values() for path in files for line in path.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def rates():
    """Tokens per second of what ran so far in this module."""
    return {}


def test_build(benchmark, large, base_model, tmp_path, rates, report):
    """The whole command but for the start of Python and its imports, against its tokenizer alone, turn about.

    Alone means `encode_batch_fast` over the same text, which it takes in as many threads as there are cores.
    """
    options = options_for(base_model)
    out = tmp_path / "dataset"
    run = RunOptions(num_workers=WORKERS, is_overwrite=True)
    plan = make_plan(all_sources(large, options, Fetched(())), options, tmp_path / "scratch")
    encoder = make_encoder(plan.tokenizer_config, plan.template)
    alone = Tokenizer.from_str(json.dumps(renamed_config(plain_config(plan.tokenizer_config))))
    texts = [
        stretch.text
        for source in plan.work.sources
        for file in source.files
        for line in file.path.read_bytes().splitlines()
        for stretch in encoder.render(parse_line(line, "chat_rounds").conversation)
    ]
    alone_seconds, manifest = [], {}

    def encode_alone():
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        start = time.perf_counter()
        for first in range(0, len(texts), 2000):
            alone.encode_batch_fast(texts[first : first + 2000], add_special_tokens=False)
        alone_seconds.append(time.perf_counter() - start)

    benchmark.pedantic(
        lambda: manifest.update(build(large, FolderOutput(out), options, run)),
        setup=encode_alone,
        rounds=3,
        warmup_rounds=1,
    )
    tokens = sum(counts["tokens"] for task in manifest["tasks"] for counts in task["splits"].values())
    build_seconds = benchmark.stats.stats.data
    rates["build"] = tokens / statistics.median(build_seconds)
    report("build, tokens/s", f"{rates['build']:,.0f}")
    report("encode_batch_fast alone, tokens/s", f"{tokens / statistics.median(alone_seconds[1:]):,.0f}")
    ratios = [alone / built for alone, built in zip(alone_seconds[1:], build_seconds, strict=True)]
    report("build / encode_batch_fast alone", shown(ratios), "at least 0.8")


def shown(ratios):
    """The median of ratios, with the least and the most."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def test_conversation_loop(benchmark, lines, base_model, rates, report):
    """Each round encoded by itself in a Python loop, as MFTCoder's encoder does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model, trust_remote_code=False)
    markers = {"system": "<s>system\n", "human": "<s>human\n", "bot": "<s>bot\n"}
    counts = []

    def encode():
        counts.clear()
        for line in lines:
            ids, mask = [], []
            for turn in json.loads(line)["chat_rounds"]:
                text = turn["content"] + (tokenizer.eos_token if turn["role"] == "bot" else "\n")
                for part, is_supervised in ((markers[turn["role"]], 0), (text, int(turn["role"] == "bot"))):
                    part_ids = tokenizer.encode(part, add_special_tokens=False)
                    ids += part_ids
                    mask += [is_supervised] * len(part_ids)
            counts.append(len(ids))

    benchmark.pedantic(encode, rounds=2)
    rate = sum(counts) / benchmark.stats.stats.min
    report("per-conversation loop, tokens/s", f"{rate:,.0f}")
    report("build / per-conversation loop", f"{rates['build'] / rate:.1f}", "at least 3")


TRL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
TRL_ROLES = {"system": "system", "human": "user", "bot": "assistant"}


@pytest.mark.parametrize("copies", [1, 6])
def test_trl(benchmark, lines, base_model, tmp_path, rates, report, copies, monkeypatch):
    """TRL's SFTTrainer preparing its dataset: template, tokens, assistant mask, packing, two processes.

    Its fixed costs weigh on the tasks as they are; on copies of them it comes to its full rate.
    """
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    datasets.disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(base_model, trust_remote_code=False)
    tokenizer.chat_template = TRL_TEMPLATE
    rows = [
        {
            "messages": [
                {"role": TRL_ROLES[turn["role"]], "content": turn["content"]}
                for turn in json.loads(line)["chat_rounds"]
            ]
        }
        for line in lines * copies
    ]
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    dataset = datasets.Dataset.from_list(rows)
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        packing=True,
        max_length=SEQ_LENGTH,
        assistant_only_loss=True,
        dataset_num_proc=WORKERS,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    trainers = []

    def prepare():
        trainers.append(SFTTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer))

    benchmark.pedantic(prepare, rounds=2)
    tokens = sum(len(row) for row in trainers[-1].train_dataset["input_ids"])
    rate = tokens / benchmark.stats.stats.min
    report(f"TRL's preparation, {copies} x the data, tokens/s", f"{rate:,.0f}")
    report(f"build / TRL's preparation, {copies} x", f"{rates['build'] / rate:.1f}", "at least 5")


def test_start(benchmark, task_files, base_model, report):
    """From the command's start to its first conversation encoded and shown, file caches warm."""
    command = [Path(sys.executable).with_name("mft-data"), "preview", next(iter(task_files.values()))[0].parent]
    command += ["--tokenizer", base_model, "--rows", "1"]
    benchmark.pedantic(
        lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), rounds=3, warmup_rounds=1
    )
    report("start to first conversation, seconds", f"{benchmark.stats.stats.min:.1f}", "at most 5")


@pytest.mark.parametrize("epochs", [3])
def test_reading(benchmark, half, base_model, tmp_path, report, epochs):
    """Our rows read back through StreamingDataset, against the same rows written by streaming's own writer."""
    from streaming import LocalDataset, MDSWriter, StreamingDataset

    os.environ["LOCAL_WORLD_SIZE"] = "1"
    build(half, FolderOutput(tmp_path / "ours"), options_for(base_model), RunOptions(num_workers=WORKERS))
    stream = tmp_path / "ours" / "train" / Path(half[0]).name
    rows = LocalDataset(str(stream))
    columns = json.loads((tmp_path / "ours" / "manifest.json").read_bytes())["columns"]
    with MDSWriter(columns=columns, out=str(tmp_path / "theirs"), hashes=["sha256"]) as writer:
        for position in range(len(rows)):
            writer.write(rows[position])

    def read(folder):
        start = time.perf_counter()
        for row in StreamingDataset(local=str(folder), batch_size=1):
            np.asarray(row["input_ids"])
        return time.perf_counter() - start

    seconds = {"ours": [], "theirs": []}

    def both():
        seconds["ours"].append(read(stream))
        seconds["theirs"].append(read(tmp_path / "theirs"))

    benchmark.pedantic(both, rounds=epochs)
    report("rows read back / streaming's own", f"{min(seconds['theirs']) / min(seconds['ours']):.2f}", "at least 0.9")


@pytest.mark.parametrize("percent", [2])
def test_rejects(benchmark, half, base_model, tmp_path, report, percent):
    """A build of which some records in a hundred are refused, against the same without them, turn about.

    Either goes first in every other turn: the second one meets the first one's writing to the disk.
    """
    for source in half:
        bad = tmp_path / "bad" / Path(source).name
        bad.mkdir(parents=True)
        for path in Path(source).iterdir():
            lines = path.read_bytes().splitlines(keepends=True)
            step = 100 // percent
            lines = [b'{"chat_rounds": 3}\n' * (number % step == 0) + line for number, line in enumerate(lines)]
            (bad / path.name).write_bytes(b"".join(lines))
    options = replace(options_for(base_model), max_rejects=MaxRejects(count=None, percent=2 * percent))
    sources = {"clean": half, "refused": [str(tmp_path / "bad" / Path(source).name) for source in half]}
    ratios, cpu_ratios, turns = [], [], count()

    def both():
        seconds, cpu_seconds = {}, {}
        turn = next(turns)
        for name in sorted(sources, reverse=turn % 2 == 1):
            start, cpu_start = time.perf_counter(), processor_seconds()
            build(sources[name], FolderOutput(tmp_path / name), options, RunOptions(WORKERS, is_overwrite=True))
            seconds[name], cpu_seconds[name] = time.perf_counter() - start, processor_seconds() - cpu_start
        if turn:  # the first one warms the caches of files
            ratios.append(seconds["refused"] / seconds["clean"])
            cpu_ratios.append(cpu_seconds["refused"] / cpu_seconds["clean"])

    benchmark.pedantic(both, rounds=4, warmup_rounds=1)
    report(f"build with {percent} % refused / without", shown(ratios), "at most 1.05")
    report("the same in processor time", shown(cpu_ratios), "at most 1.05")


def processor_seconds():
    """What this process and its children that have ended took of processors."""
    return sum(os.times()[:4])


@pytest.mark.parametrize("num_tasks", [2000])
def test_inspect_of_many_tasks(benchmark, task_files, base_model, tmp_path, report, num_tasks):
    """The whole command on a dataset of many tasks, each with the first hundred conversations of the first one."""
    lines = next(iter(task_files.values()))[0].read_bytes().splitlines(keepends=True)[:100]
    (tmp_path / "part.jsonl").write_bytes(b"".join(lines))
    tasks = "".join(f"  t{number}: {{paths: {tmp_path / 'part.jsonl'}}}\n" for number in range(num_tasks))
    (tmp_path / "tasks.yaml").write_text(f"tasks:\n{tasks}")
    dataset = tmp_path / "dataset"
    build([str(tmp_path / "tasks.yaml")], FolderOutput(dataset), options_for(base_model), RunOptions(WORKERS))
    command = [Path(sys.executable).with_name("mft-data"), "inspect", dataset]
    benchmark.pedantic(
        lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), rounds=2, warmup_rounds=1
    )
    report(f"inspect of {num_tasks:,} tasks, seconds", f"{benchmark.stats.stats.min:.1f}", "at most 10")


@pytest.mark.parametrize("num_conversations", [200_000])
def test_near_duplicates_of_templated_prompts(benchmark, report, num_conversations):
    """Signatures of one long prompt with small parts of their own, found and taken in one after the other."""
    generator = np.random.default_rng(0)
    values = np.tile(np.arange(NUM_HASHES, dtype=np.uint32), (num_conversations, 1))
    own = generator.random(values.shape) < 0.3
    values[own] = generator.integers(0, 2**32, own.sum(), dtype=np.uint32)
    digests = np.arange(2 * num_conversations, dtype=np.uint64).reshape(-1, 2)
    seconds = []

    def find():
        duplicates = Duplicates("near")
        for first in range(0, num_conversations, num_conversations // 10):
            start = time.perf_counter()
            last = first + num_conversations // 10
            duplicates.is_duplicate(digests[first:last], values[first:last])
            seconds.append(time.perf_counter() - start)

    benchmark.pedantic(find, rounds=1)
    report("near-duplicates, templated, conversations/s", f"{num_conversations / sum(seconds):,.0f}")
    report("its last tenth / its second", f"{seconds[-1] / seconds[1]:.2f}", "at most 2")
