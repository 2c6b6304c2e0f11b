"""The decoding loop: a batch of sequences through the model with a cache, finished ones dropped on the way."""

import inspect
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING, Any

from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.sampling import choose_tokens
from mft_infer.settings import AnswerSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Sequence:
    """One answer while it grows: what it was asked, how it may end, what it has said.

    `finish_reason` is None until a stop token or a stop string ("stop") or `max_new_tokens` ("length") ends it.
    """

    def __init__(
        self,
        prompt_ids: list[int],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        stop_texts: tuple[str, ...],
        random: Random,
        detokenizer: Detokenizer,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.random = random
        self.text = ""
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self._max_new_tokens = max_new_tokens
        self._stop_ids = stop_ids
        self._stop_texts = stop_texts
        self._detokenizer = detokenizer

    def push(self, token_id: int) -> None:
        """Take in the next token."""
        self.num_tokens += 1
        if token_id in self._stop_ids:
            self._add(self._detokenizer.flush())
            self.finish_reason = "stop"
            return
        self._add(self._detokenizer.push(token_id))
        if self.finish_reason is None and self.num_tokens >= self._max_new_tokens:
            self._add(self._detokenizer.flush())
            self.finish_reason = self.finish_reason or "length"

    def _add(self, text: str) -> None:
        """Append text; the first stop string in it ends the answer before itself."""
        start = max(0, len(self.text) - max(map(len, self._stop_texts), default=0))
        self.text += text
        places = [place for stop in self._stop_texts if (place := self.text.find(stop, start)) >= 0]
        if places:
            self.text = self.text[: min(places)]
            self.finish_reason = "stop"


def decode(model: "PreTrainedModel", sequences: list[Sequence], settings: AnswerSettings) -> Iterator[None]:
    """Grow all `sequences` until each has finished; yields after every token.

    Prompts are padded on the left, and positions count from each prompt's first token, so that an answer is the same
    alone and in company.
    """
    import torch
    from transformers import DynamicCache

    active = list(sequences)
    width = max(len(sequence.prompt_ids) for sequence in active)
    rows = [[0] * (width - len(sequence.prompt_ids)) + sequence.prompt_ids for sequence in active]
    mask_rows = [[0] * (width - len(ids)) + [1] * len(ids) for ids in (sequence.prompt_ids for sequence in active)]
    input_ids = torch.tensor(rows, device=model.device)
    attention_mask = torch.tensor(mask_rows, device=model.device)
    cache = DynamicCache(config=model.config)
    while active:
        logits = _next_logits(model, input_ids, attention_mask, cache)
        tokens = choose_tokens(logits, settings, [sequence.random for sequence in active])
        for sequence, token_id in zip(active, tokens, strict=True):
            sequence.push(token_id)
        yield
        kept = [index for index, sequence in enumerate(active) if sequence.finish_reason is None]
        if 0 < len(kept) < len(active):
            indices = torch.tensor(kept, device=model.device)
            cache.batch_select_indices(indices)
            attention_mask = attention_mask[indices]
        active = [active[index] for index in kept]
        input_ids = torch.tensor([[tokens[index]] for index in kept], device=model.device)
        if active:
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(active), 1)], dim=1)


def _next_logits(model: "PreTrainedModel", input_ids: "Tensor", attention_mask: "Tensor", cache: Any) -> "Tensor":
    """The logits (batch, vocabulary) after the last token, in float32; `cache` takes in `input_ids`."""
    import torch

    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "position_ids" in accepted:
        positions = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
        options["position_ids"] = positions[:, -input_ids.shape[1] :]
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = 1
    with torch.inference_mode():
        output = model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **options
        )
    return output.logits[:, -1].float()
