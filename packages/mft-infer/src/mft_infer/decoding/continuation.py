"""One answer after the other to prompts that go on from each other: what is the same is not read again."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.batch import PREFILL_TOKENS
from mft_infer.decoding.cache_rows import is_recurrent
from mft_infer.decoding.forward import Forward
from mft_infer.decoding.sampling import push_tokens
from mft_infer.settings import AnswerSettings

if TYPE_CHECKING:
    from torch import Tensor


class Continuation:
    """A cache of one row and the ids that are in it."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._cache = forward.new_cache()
        self._ids: list[int] = []

    def grow(self, answer: Answer, settings: AnswerSettings) -> Iterator[None]:
        """Grow an answer to its end; yields after every token. It may be left between tokens."""
        self._go_back(answer.prompt_ids)
        while answer.finish_reason is None:
            push_tokens(self._read(answer.ids[len(self._ids) :]), settings, [answer])
            yield

    def _read(self, ids: list[int]) -> "Tensor":
        """The logits after more ids, which the cache takes in."""
        import torch

        piece = len(ids) if is_recurrent(self._cache) else PREFILL_TOKENS
        for start in range(0, len(ids), piece):
            part = ids[start : start + piece]
            input_ids = torch.tensor([part], device=self._forward.model.device)
            mask = torch.ones(1, len(self._ids) + len(part), dtype=torch.long, device=input_ids.device)
            try:
                logits = self._forward.logits(input_ids, mask, self._cache)
            except BaseException:
                # An interrupt leaves some layers with the new tokens and some without.
                self._cache, self._ids = self._forward.new_cache(), []
                raise
            self._ids += part
        return logits

    def _go_back(self, ids: list[int]) -> None:
        """Forget what `ids` do not begin with, and their last one, whose logits are needed."""
        num_same = 0
        for had, has in zip(self._ids, ids[:-1], strict=False):
            if had != has:
                break
            num_same += 1
        if num_same == len(self._ids):
            return
        if not self._can_crop():
            self._cache, self._ids = self._forward.new_cache(), []
            return
        self._cache.crop(num_same - len(self._ids))
        self._ids = self._ids[:num_same]

    def _can_crop(self) -> bool:
        """Whether every layer still has all its columns."""
        layers: list[Any] = self._cache.layers
        return all(
            type(layer).__name__ == "GrowingLayer"
            or (type(layer).__name__ == "DynamicSlidingWindowLayer" and len(self._ids) < layer.sliding_window)
            for layer in layers
        )
