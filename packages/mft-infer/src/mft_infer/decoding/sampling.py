"""The choice of the next token from logits: greedy, or one uniform number through the distribution function."""

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from mft_infer.settings import AnswerSettings

if TYPE_CHECKING:
    from torch import Tensor


def request_random(seed: int, problem_id: str, sample_index: int) -> Random:
    """The random numbers of one completion, which depend on nothing but these three."""
    key = f"{seed}\n{sample_index}\n{problem_id}".encode()
    return Random(hashlib.sha256(key).digest())


def choose_tokens(logits: "Tensor", settings: AnswerSettings, randoms: Sequence[Random]) -> list[int]:
    """One token id for each row of `logits` (batch, vocabulary); a sampled row takes one number of its `randoms`."""
    if settings.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    import torch

    scaled = (logits.double() - logits.double().amax(dim=-1, keepdim=True)) / settings.temperature
    probabilities, ids = torch.softmax(scaled, dim=-1), None
    if settings.top_p < 1 or settings.top_k:
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
    """Probabilities sorted downwards with those outside top-k, then outside top-p, set to zero.

    Top-p keeps the shortest run whose sum reaches `top_p` of what top-k left; at least one token stays.
    """
    if settings.top_k:
        probabilities = probabilities.clone()
        probabilities[:, settings.top_k :] = 0
    before = probabilities.cumsum(dim=-1) - probabilities
    outside = before >= settings.top_p * probabilities.sum(dim=-1, keepdim=True)
    outside[:, 0] = False
    return probabilities.masked_fill(outside, 0)
