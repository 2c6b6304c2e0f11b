"""Scheduling changes when an answer is made, never what it is."""

import os
import subprocess
import sys
from random import Random

import pytest

from mft_infer.decoding import batch as batch_module
from mft_infer.decoding.answer import Answer
from mft_infer.decoding.batch import Batch
from mft_infer.decoding.budget import Budget
from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.sampling import request_random
from mft_infer.decoding.schedule import decode_all
from mft_infer.settings import AnswerSettings

SAMPLED = AnswerSettings(temperature=1.4, top_p=0.95)


@pytest.fixture
def decode(language_model):
    """decode(budget, ...) are the answers to 12 prompts, some samples of each."""

    def run(budget: Budget, settings: AnswerSettings = SAMPLED, num_samples: int = 3, max_new_tokens: int = 24):
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
import resource, sys
from mft_infer.cli import main
import torch, transformers.models.llama.modeling_llama
torch.set_num_threads(1)
torch.zeros(8, 8) @ torch.zeros(8, 8)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main()
"""


@pytest.mark.slow
def test_when_memory_runs_out_the_budget_is_halved_and_nothing_is_lost(big_cache_model, write_prompts, tmp_path):
    """A process with 400 MiB to spare: 20 rows of 500 tokens need more, one does not."""
    prompts = write_prompts([{"problem_id": str(number), "prompt": f"fox {number} " * 120} for number in range(20)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}

    def generate(out: str, megabytes: int, *options: str) -> subprocess.CompletedProcess:
        arguments = ["generate", str(big_cache_model), str(prompts), str(tmp_path / out), "--max-new-tokens", "2"]
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, str(megabytes << 20), *arguments, *options],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    limited = generate("limited.jsonl", 400, "--batch-tokens", "1000000")
    assert limited.returncode == 0, limited.stderr
    assert "memory ran out" in limited.stderr
    free = generate("free.jsonl", 20_000, "--batch-size", "2")
    assert free.returncode == 0, free.stderr
    assert (tmp_path / "limited.jsonl").read_bytes() == (tmp_path / "free.jsonl").read_bytes()
