"""Scheduling changes when an answer is made, never what it is."""

import json
import os
import re
import subprocess
import sys
from random import Random

import pytest
import torch

from mft_infer.decoding import batch as batch_module
from mft_infer.decoding.answer import Answer
from mft_infer.decoding.batch import Batch
from mft_infer.decoding.budget import Budget
from mft_infer.decoding.by_generate import generate_all
from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.sampling import request_random
from mft_infer.decoding.schedule import decode_all
from mft_infer.settings import AnswerSettings

SAMPLED = AnswerSettings(temperature=1.4, top_p=0.95)


@pytest.fixture
def decode(language_model):
    """decode(budget, ...) are the answers to 12 prompts, some samples of each."""

    def run(budget: Budget, settings: AnswerSettings = SAMPLED, num_samples: int = 2, max_new_tokens: int = 20):
        draw = Random(3)
        groups = []
        for number in range(12):
            ids = [draw.randrange(2, 300) for _ in range(1 + 5 * number % 37)]
            groups.append(
                [
                    Answer(
                        ids,
                        max_new_tokens=max_new_tokens - number,
                        stop_ids=language_model.stop_ids,
                        stop_texts=(),
                        random=request_random(0, str(number), sample),
                        detokenizer=Detokenizer(language_model.tokenizer),
                    )
                    for sample in range(num_samples)
                ]
            )
        ended = list(decode_all(language_model.forward, groups, settings, budget))
        answers = [answer for group in groups for answer in group]
        assert len(ended) == len(set(ended)) == len(answers)
        return [(answer.token_ids, answer.text, answer.finish_reason) for answer in answers]

    return run


def test_answers_do_not_depend_on_the_budget(decode):
    expected = decode(Budget(1, 100_000))
    # Refills, samples that do not fit together, answers put back when the tokens are too many.
    for budget in (Budget(2, 100_000), Budget(7, 100_000), Budget(100, 100_000), Budget(100, 150), Budget(8, 1)):
        assert decode(budget) == expected


def test_long_prompts_are_read_in_pieces(decode, monkeypatch):
    expected = decode(Budget(8, 100_000))
    monkeypatch.setattr(batch_module, "PREFILL_TOKENS", 7)
    assert decode(Budget(8, 100_000)) == expected


def test_the_samples_of_a_prompt_are_read_once(language_model, monkeypatch):
    read: list[int] = []
    logits = type(language_model.forward).logits

    def counted(self, input_ids, attention_mask, cache):
        read.append(input_ids.numel())
        return logits(self, input_ids, attention_mask, cache)

    monkeypatch.setattr(type(language_model.forward), "logits", counted)
    answers = [
        Answer(
            [5] * 30,
            max_new_tokens=3,
            stop_ids=frozenset(),
            stop_texts=(),
            random=Random(sample),
            detokenizer=Detokenizer(language_model.tokenizer),
        )
        for sample in range(8)
    ]
    list(decode_all(language_model.forward, [answers], SAMPLED, Budget(8, 10_000)))
    assert read == [30, 8, 8]


def test_padding_that_no_row_needs_is_dropped(language_model):
    def answer(length: int, limit: int) -> Answer:
        return Answer(
            [7] * length,
            max_new_tokens=limit,
            stop_ids=frozenset(),
            stop_texts=(),
            random=Random(0),
            detokenizer=Detokenizer(language_model.tokenizer),
        )

    batch = Batch(language_model.forward, AnswerSettings())
    batch.add([[answer(60, 2)], [answer(10, 20)]])
    assert batch.width == 60
    batch.step()
    assert (len(batch.answers), batch.width) == (1, 11)


SCRIPT = """
import json, resource, sys
from mft_infer.cli import main
import torch, transformers.models.llama.modeling_llama
torch.set_num_threads(1)
torch.zeros(8, 8) @ torch.zeros(8, 8)
for megabytes, arguments in json.loads(sys.argv[1]):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), resource.RLIM_INFINITY))
    print(arguments[3], file=sys.stderr)
    main(arguments, standalone_mode=False)
"""


@pytest.mark.slow
def test_when_memory_runs_out_the_budget_is_halved_and_nothing_is_lost(big_cache_model, write_prompts, tmp_path):
    """A process with 160 MiB to spare: 20 rows of 170 tokens need more, one does not; beams need twice as much."""
    prompts = write_prompts([{"problem_id": str(number), "prompt": f"fox {number} " * 40} for number in range(20)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    runs = [
        (
            megabytes,
            ["generate", str(big_cache_model), str(prompts), str(tmp_path / out), "--max-new-tokens", "2", *options],
        )
        for megabytes, out, *options in (
            (160, "limited", "--batch-tokens", "1000000"),
            (160, "limited-beams", "--batch-tokens", "1000000", "--beams", "2"),
            (20_000, "free", "--batch-size", "2"),
            (20_000, "free-beams", "--batch-size", "4", "--beams", "2"),
        )
    ]
    command = [sys.executable, "-c", SCRIPT, json.dumps(runs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    limited, beams, free = re.split("limited-beams|free\n", done.stderr)
    assert "memory ran out" in limited
    assert "memory ran out" in beams
    assert "memory ran out" not in free
    for name in ("", "-beams"):
        assert (tmp_path / f"limited{name}").read_bytes() == (tmp_path / f"free{name}").read_bytes()


def test_a_model_that_generates_by_itself_tells_that_memory_ran_out(language_model):
    """The memory of a device without a byte: what torch raises there, from within the model."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    answer = Answer(
        [7, 8],
        max_new_tokens=3,
        stop_ids=frozenset(),
        stop_texts=(),
        random=Random(0),
        detokenizer=Detokenizer(language_model.tokenizer),
    )
    with language_model.model.register_forward_pre_hook(fail):
        assert list(generate_all(language_model.model, [answer], SAMPLED)) == [answer]
    assert (answer.text, answer.error) == ("", "the device has not enough memory")
