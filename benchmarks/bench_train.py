"""mft-train against a careful hand loop and against TRL's SFTTrainer, each contender alone in its own process.

Every contender trains on the same conversations in rows of SEQ_LENGTH, one row at a time, with a step for every
TASK_ROWS rows of each task; all must agree on the loss of the first step.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from mft_train.balancing.balancers import RULES, task_weights
from mft_train.config.loss_config import LossConfig

CONTENDER = Path(__file__).parent / "train_contender.py"
SEQ_LENGTH = 1024
TASK_ROWS = 1
TURN_TOKENS = 8  # at most, that the template adds to a turn
EPOCHS = 5
METHODS = ("lora", "full")
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def dataset(task_files, base_model, tmp_path_factory):
    """Conversations of every task that fill TASK_ROWS rows, and eight rows of others for validation."""
    root = tmp_path_factory.mktemp("train")
    tokenizer = Tokenizer.from_file(str(base_model / "tokenizer.json"))
    options = []
    for task, files in task_files.items():
        lines = [line for path in files for line in path.read_text().splitlines()]
        for split, rows in (("train", TASK_ROWS), ("validation", 8)):
            lines.reverse()  # two ends of the task
            (root / split / task).mkdir(parents=True)
            chosen = fitting(lines, tokenizer, rows * SEQ_LENGTH - 32)
            (root / split / task / "part-000.jsonl").write_text("\n".join(chosen) + "\n")
        options += ["--validation-source", f"{task}={root / 'validation' / task}"]
    sources = [str(root / "train" / task) for task in task_files]
    command = [mft("data"), "build", *sources, str(root / "dataset"), "--tokenizer", str(base_model), *options]
    subprocess.run([*command, "--seq-length", str(SEQ_LENGTH), "--validation", "0"], check=True, capture_output=True)
    return root / "dataset"


def fitting(lines, tokenizer, budget):
    """The first lines that fit into `budget` tokens together, until little is left."""
    chosen = []
    for line in lines:
        if budget <= 64:
            break
        turns = json.loads(line)["chat_rounds"]
        tokens = sum(len(tokenizer.encode(turn["content"]).ids) + TURN_TOKENS for turn in turns)
        if tokens <= budget:
            chosen.append(line)
            budget -= tokens
    return chosen


def mft(package):
    return str(Path(sys.executable).with_name(f"mft-{package}"))


@pytest.fixture(scope="module")
def compete(dataset, base_model, tmp_path_factory):
    """The figures of a contender, run once for the same arguments."""
    known = {}

    def compete(contender, method, *overrides):
        key = (contender, method, *overrides)
        if key not in known:
            tasks = json.loads((dataset / "manifest.json").read_text())["tasks"]
            rows = sum(task["splits"]["train"]["rows"] for task in tasks)
            out = tmp_path_factory.mktemp("out") / "run"
            command = [sys.executable, CONTENDER, contender, method, base_model, dataset, out, str(rows), str(EPOCHS)]
            done = subprocess.run([*map(str, command), *overrides], check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            known[key] = json.loads(done.stdout) | {"rows": rows}
        return known[key]

    return compete


def gemm_flops():
    """Floating-point operations per second of a large float32 matrix product with torch's threads."""
    import torch

    side = 4096
    left, right = torch.randn(side, side), torch.randn(side, side)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        left @ right
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def step_flops(base_model, dataset, method):
    """Operations of the matrix products of one epoch: forward, input gradients and, for `full`, weight gradients."""
    shape = json.loads((base_model / "config.json").read_text())
    heads, keys = shape["num_attention_heads"], shape["num_key_value_heads"]
    hidden, wide = shape["hidden_size"], shape["intermediate_size"]
    layer = hidden * hidden * 2 + 2 * hidden * hidden * keys // heads + 3 * hidden * wide
    splits = [task["splits"]["train"] for task in json.loads((dataset / "manifest.json").read_text())["tasks"]]
    in_layers = sum(split["tokens"] for split in splits) * layer * shape["num_hidden_layers"]
    in_head = sum(split["supervised_tokens"] for split in splits) * hidden * shape["vocab_size"]
    return 2 * (in_layers + in_head) * (2 if method == "lora" else 3)


@pytest.mark.parametrize("method", METHODS)
def test_speed_and_memory(compete, report, dataset, base_model, method):
    hand, kernels, ours, trl = (compete(name, method) for name in ("hand", "kernels", "ours", "trl"))
    for figures in (hand, kernels, trl):
        assert figures["losses"][0] == pytest.approx(ours["losses"][0], rel=1e-3)
    rate = "supervised_tokens_per_second"
    for name, figures in {"mft-train": ours, "hand loop": hand, "its kernels alone": kernels, "TRL": trl}.items():
        speed = f"{figures[rate]:.0f} ({figures['tokens_per_second']:.0f})"
        report(f"{method}: {name}, supervised tokens/s (all tokens/s)", speed)
        report(f"{method}: {name}, peak memory", f"{figures['peak_mib']:,.0f} MiB")
    goal = {"lora": 2.0, "full": 1.75}[method]
    report(f"{method}: mft-train / TRL", f"{ours[rate] / trl[rate]:.2f}", f"at least {goal}")
    report(f"{method}: mft-train / hand loop", f"{ours[rate] / hand[rate]:.2f}", "above 1")
    overhead = 1 - ours[rate] / kernels[rate]
    report(f"{method}: trainer's overhead over its kernels alone", f"{overhead:.1%}", "under 3 %")
    report(f"{method}: peak memory / TRL's", f"{ours['peak_mib'] / trl['peak_mib']:.2f}", "below 1")
    seconds = min(ours["seconds_per_epoch"])
    share = step_flops(base_model, dataset, method) / seconds / gemm_flops()
    report(f"{method}: share of the machine's GEMM rate in matrix products", f"{share:.0%}")


def test_cost_of_an_update(compete, report):
    """All three tasks are measured in every step, where the defaults measure one of them every ten steps."""
    static = compete("ours", "lora")
    often = ("loss.balancer_interval=1", "loss.probe_tasks=null", "loss.reduction=task_mean")
    coba = compete("ours", "lora", "loss.balancer=coba", *often)
    row_seconds = min(static["seconds_per_epoch"]) / static["rows"]
    update_seconds = (min(coba["seconds_per_epoch"]) - min(static["seconds_per_epoch"])) / 3
    report("lora: an update at the defaults, in training rows", f"{update_seconds / row_seconds:.1f}")
    report("lora: its share of ten steps of 16 rows", f"{update_seconds / (160 * row_seconds):.1%}", "below 3 %")


@pytest.mark.parametrize("num_tasks", [3, 100, 2000])
@pytest.mark.parametrize("balancer", sorted(RULES))
def test_cost_of_a_rule(report, balancer, num_tasks):
    """The rule alone, one task measured in each update, once its histories are full."""
    loss, generator = LossConfig(balancer=balancer), np.random.default_rng(0)
    names = [str(task) for task in range(num_tasks)]
    state, times = {}, []
    for update in range(200):
        losses = generator.random(num_tasks).tolist()
        if update % 40 >= 20:  # measured in turn; before that all of them, so that histories are full
            losses = [value if task == update % num_tasks else None for task, value in enumerate(losses)]
        started = time.perf_counter()
        _, state = task_weights(loss, names, state, losses)
        times.append(time.perf_counter() - started)
    report(f"{balancer}: the rule's own time for {num_tasks:,} tasks", f"{1000 * float(np.median(times)):.2f} ms")


if os.environ.get("OMP_NUM_THREADS") == "1":
    pytest.skip("speeds are of all cores: unset OMP_NUM_THREADS", allow_module_level=True)
