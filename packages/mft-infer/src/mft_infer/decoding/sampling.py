"""The choice of the next token from logits: greedy, or one uniform number through the distribution function."""

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from mft_infer.decoding.answer import Answer
from mft_infer.settings import AnswerSettings

if TYPE_CHECKING:
    from torch import Tensor


def request_random(seed: int, problem_id: str, sample_index: int) -> Random:
    """The random numbers of one completion, which depend on nothing but these three."""
    return Random(_digest(seed, problem_id, sample_index))


def request_seed(seed: int, problem_id: str, sample_index: int) -> int:
    """The seed of one completion for engines that draw numbers of their own, from 0 to 2^31 - 1."""
    return int.from_bytes(_digest(seed, problem_id, sample_index)[:4], "big") >> 1


def push_tokens(logits: "Tensor", settings: AnswerSettings, answers: Sequence[Answer]) -> None:
    """Give each answer its next token; `logits` are (answers, vocabulary)."""
    chosen = logits
    if settings.repetition_penalty != 1:
        chosen = penalized(logits, settings.repetition_penalty, [answer.ids for answer in answers])
    tokens = choose_tokens(chosen, settings, [answer.random for answer in answers])
    if settings.logprobs:
        logprobs = logits.log_softmax(dim=-1)
        for index, (answer, token_id) in enumerate(zip(answers, tokens, strict=True)):
            answer.logprobs.append(float(logprobs[index, token_id]))
    for answer, token_id in zip(answers, tokens, strict=True):
        answer.push(token_id)


def penalized(logits: "Tensor", penalty: float, rows: Sequence[Sequence[int]]) -> "Tensor":
    """Logits with those of the tokens in `rows` divided by the penalty, or multiplied where negative (CTRL)."""
    import torch

    logits = logits.clone()
    for index, ids in enumerate(rows):
        seen = torch.tensor(sorted(set(ids)), device=logits.device)
        scores = logits[index, seen]
        logits[index, seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits


def choose_tokens(logits: "Tensor", settings: AnswerSettings, randoms: Sequence[Random]) -> list[int]:
    """One token id for each row of `logits` (batch, vocabulary); a sampled row takes one number of its `randoms`."""
    if settings.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    import torch

    scaled = (logits.double() - logits.double().amax(dim=-1, keepdim=True)) / settings.temperature
    probabilities, ids = torch.softmax(scaled, dim=-1), None
    if settings.top_p < 1 or settings.top_k or settings.min_p:
        probabilities, ids = probabilities.sort(dim=-1, descending=True, stable=True)
        probabilities = _truncated(probabilities, settings)
    sums = probabilities.cumsum(dim=-1)
    uniforms = torch.tensor([[random.random()] for random in randoms], dtype=torch.float64, device=logits.device)
    # right=True steps over tokens of probability zero; the clamp guards a rounded product.
    chosen = torch.searchsorted(sums, uniforms * sums[:, -1:], right=True)
    last = (probabilities > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    chosen = torch.minimum(chosen, last)
    return (chosen if ids is None else ids.gather(-1, chosen))[:, 0].tolist()


def _truncated(probabilities: "Tensor", settings: AnswerSettings) -> "Tensor":
    """Probabilities sorted downwards with those outside top-k, top-p and min-p, in this order, set to zero.

    Top-p keeps the shortest run whose sum reaches `top_p` of what top-k left, min-p what has at least `min_p` of the
    largest probability; at least one token stays.
    """
    if settings.top_k:
        probabilities = probabilities.clone()
        probabilities[:, settings.top_k :] = 0
    before = probabilities.cumsum(dim=-1) - probabilities
    outside = before >= settings.top_p * probabilities.sum(dim=-1, keepdim=True)
    outside |= probabilities < settings.min_p * probabilities[:, :1]
    outside[:, 0] = False
    return probabilities.masked_fill(outside, 0)


def _digest(seed: int, problem_id: str, sample_index: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{sample_index}\n{problem_id}".encode()).digest()
