"""The rows that are decoded together: answers with their cache, which rows join and leave."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.cache_rows import choose_rows, drop_columns, is_joinable, is_recurrent, join_rows
from mft_infer.decoding.forward import Forward
from mft_infer.decoding.padding import padded, padding_mask
from mft_infer.decoding.sampling import push_tokens
from mft_infer.settings import AnswerSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache

# Prompts go through the model in pieces of at most so many tokens, which bounds the memory of a forward.
PREFILL_TOKENS = 4096
# Columns that all rows have as padding are dropped when they are at least this share.
DROPPED_SHARE = 8


class Batch:
    """Answers that grow together, one token a step; their caches end at the same column, padded on the left."""

    def __init__(self, forward: Forward, settings: AnswerSettings) -> None:
        self._forward = forward
        self._settings = settings
        self.answers: list[Answer] = []
        self._lengths: list[int] = []  # tokens of each row in the cache
        self._width = 0  # columns of the cache
        self._cache: Cache | None = None
        self._mask: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Cache columns of all rows, padding among them."""
        return len(self.answers) * self._width

    @property
    def width(self) -> int:
        """Cache columns of a row."""
        return self._width

    @property
    def can_grow(self) -> bool:
        """Whether rows can join now."""
        return self._cache is None or is_joinable(self._cache)

    def add(self, groups: Sequence[list[Answer]]) -> list[Answer]:
        """Read the prompts of new answers and give each its first token; returns those that end with it.

        The answers of a group have the same ids so far, which are read once.
        """
        prompts = [group[0].ids for group in groups]
        cache, logits = prefill(self._forward, prompts)
        origins = [index for index, group in enumerate(groups) for _ in group]
        answers = [answer for group in groups for answer in group]
        push_tokens(logits[origins], self._settings, answers)
        kept = [index for index, answer in enumerate(answers) if answer.finish_reason is None]
        if kept:
            rows = [origins[index] for index in kept]
            if rows != list(range(len(prompts))):
                choose_rows(cache, rows)
            width = max(map(len, prompts))
            self._join([answers[index] for index in kept], [len(prompts[row]) for row in rows], cache, width)
        return [answer for answer in answers if answer.finish_reason is not None]

    def step(self) -> list[Answer]:
        """Give each answer its next token; returns those that end with it, which leave."""
        import torch

        device = self._forward.model.device
        input_ids = torch.tensor([[answer.token_ids[-1]] for answer in self.answers], device=device)
        self._width += 1
        self._lengths = [length + 1 for length in self._lengths]
        cache: Any = self._cache  # there are answers, so there is one
        logits = self._forward.logits(input_ids, self._attention_mask(), cache)
        push_tokens(logits, self._settings, self.answers)
        ended = [answer for answer in self.answers if answer.finish_reason is not None]
        if ended:
            self._keep(_closed_up([answer.finish_reason is None for answer in self.answers]))
        return ended

    def take(self, count: int) -> list[Answer]:
        """Take the last answers out, unfinished as they are."""
        rest = len(self.answers) - count
        taken = self.answers[rest:]
        self._keep(list(range(rest)))
        return taken

    def _join(self, answers: list[Answer], lengths: list[int], cache: Any, width: int) -> None:
        if self._cache is None:
            self._cache, self._width = cache, width
        else:
            join_rows(self._cache, cache, self._width, width)
            self._width = max(self._width, width)
        self.answers += answers
        self._lengths += lengths
        self._mask = None

    def _keep(self, rows: list[int]) -> None:
        self.answers = [self.answers[row] for row in rows]
        self._lengths = [self._lengths[row] for row in rows]
        self._mask = None
        if not rows or self._cache is None:
            self._cache, self._width = None, 0
            return
        choose_rows(self._cache, rows)
        unused = self._width - max(self._lengths)
        if unused * DROPPED_SHARE >= self._width and is_joinable(self._cache):
            drop_columns(self._cache, unused)
            self._width -= unused

    def _attention_mask(self) -> "Tensor":
        """One for each column that a row has a token in, zero for padding."""
        import torch

        if self._mask is None:
            self._mask = padding_mask(self._lengths, self._width, self._forward.model.device)
        else:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.answers), 1)], dim=1)
        return self._mask


def _closed_up(is_kept: list[bool]) -> list[int]:
    """The kept rows in an order in which few move: the last ones take the places of those that leave."""
    kept = [row for row, is_one in enumerate(is_kept) if is_one]
    places = range(len(kept))
    movers = [row for row in kept if row >= len(kept)]
    return [place if is_kept[place] else movers.pop() for place in places]


def prefill(forward: Forward, prompts: list[list[int]]) -> tuple["Cache", "Tensor"]:
    """A new cache that has the prompts, padded on the left, and the logits after each; in pieces if they are long."""
    width = max(map(len, prompts))
    input_ids, mask = padded(prompts, forward.model.device)
    cache = forward.new_cache()
    # A recurrent layer takes in a prompt as a whole.
    piece = width if is_recurrent(cache) else max(PREFILL_TOKENS // len(prompts), 1)
    for start in range(0, width, piece):
        end = min(start + piece, width)
        logits = forward.logits(input_ids[:, start:end], mask[:, :end], cache)
    return cache, logits
