"""Conversations to token ids and loss masks, so that prompts match inference and contents cannot inject."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mft_data.conversation import Conversation, Turn
from mft_data.errors import DataError
from mft_data.special_tokens import (
    name_rewriter,
    plain_config,
    renamed_config,
    special_token_ids,
    unknown_token_id,
    without_prefix_space,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenizers import Tokenizer

    from mft_data.template import Stretch, Template

# What a tokenizer has to treat alike before and after its special tokens are renamed.
SAMPLE_TEXTS = (
    "def add(a, b):\n    return a + b\n",
    "  two spaces, a tab\tand\u00a0a no-break space",
    "naïve café, 你好, привет 🙂 \x00 </>|[]{}",
    "",
)


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Encoded conversations, end to end."""

    input_ids: np.ndarray  # (tokens,) uint16 or uint32
    loss_mask: np.ndarray  # (tokens,) uint8, 1 = counts towards the loss
    lengths: np.ndarray  # (conversations,) int64, tokens of each


@dataclass(frozen=True, slots=True)
class Encoder:
    """A template and a tokenizer, joined.

    Every stretch of the template is encoded on its own, so no merge crosses the border of a supervised span. A
    supervised stretch is encoded as the continuation that it is, without a leading space of the tokenizer's own
    making; an unsupervised one after the first as the text after EOS that it is.
    """

    template: Template  # its special tokens under their private names
    prompt_tokenizer: Tokenizer
    span_tokenizer: Tokenizer
    eos_length: int  # ids that EOS at the start of a text takes
    ids_dtype: str  # uint16 or uint32

    def encode_batch(self, conversations: Sequence[Conversation]) -> EncodedBatch:
        """Ids and masks of one or more conversations; the first token of each is never supervised."""
        per_conversation = [self.template.stretches(conversation) for conversation in conversations]
        stretches = list(chain.from_iterable(per_conversation))
        num_stretches = np.fromiter(map(len, per_conversation), np.int64, len(per_conversation))
        starts = np.cumsum(num_stretches) - num_stretches
        stretch_ids = self.encode_stretches(stretches, set(starts.tolist()))
        stretch_lengths = np.fromiter(map(len, stretch_ids), np.int64, len(stretch_ids))
        is_supervised = np.fromiter((stretch.is_supervised for stretch in stretches), np.uint8, len(stretches))
        lengths = np.add.reduceat(stretch_lengths, starts)
        loss_mask = np.repeat(is_supervised, stretch_lengths)
        # Nothing comes before the first token that could predict it.
        loss_mask[np.cumsum(lengths) - lengths] = 0
        input_ids = np.fromiter(chain.from_iterable(stretch_ids), self.ids_dtype, len(loss_mask))
        return EncodedBatch(input_ids, loss_mask, lengths)

    def encode_stretches(self, stretches: list[Stretch], starts: set[int]) -> list[list[int]]:
        """The ids of each stretch; `starts` are the positions that open a conversation."""
        supervised = [position for position, stretch in enumerate(stretches) if stretch.is_supervised]
        prompts = [position for position, stretch in enumerate(stretches) if not stretch.is_supervised]
        after_eos = [position not in starts for position in prompts]
        spans = [stretches[position].text for position in supervised]
        prompt_texts = [
            self.template.eos + stretches[position].text if follows else stretches[position].text
            for position, follows in zip(prompts, after_eos, strict=True)
        ]
        ids: list[list[int]] = [[]] * len(stretches)
        encodings = self.span_tokenizer.encode_batch_fast(spans, add_special_tokens=False)
        for position, encoding in zip(supervised, encodings, strict=True):
            ids[position] = encoding.ids
        encodings = self.prompt_tokenizer.encode_batch_fast(prompt_texts, add_special_tokens=False)
        for position, follows, encoding in zip(prompts, after_eos, encodings, strict=True):
            ids[position] = encoding.ids[self.eos_length :] if follows else encoding.ids
        return ids


def make_encoder(config: Mapping[str, Any], template: Template) -> Encoder:
    """The encoder of a tokenizer.json (decoded) and a template; raises DataError if the laws would not hold."""
    plain = plain_config(config)
    renamed = renamed_config(plain)
    continuing = without_prefix_space(renamed)
    prompt_tokenizer = make_tokenizer(renamed)
    span_tokenizer = prompt_tokenizer if continuing == renamed else make_tokenizer(continuing)
    private_template = template.rewritten(name_rewriter(plain))
    max_token_id = max(prompt_tokenizer.get_vocab(with_added_tokens=True).values())
    encoder = Encoder(
        template=private_template,
        prompt_tokenizer=prompt_tokenizer,
        span_tokenizer=span_tokenizer,
        eos_length=len(prompt_tokenizer.encode(private_template.eos, add_special_tokens=False)),
        ids_dtype="uint16" if max_token_id < 1 << 16 else "uint32",
    )
    check_encoder(encoder, plain, template)
    return encoder


def make_tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a decoded tokenizer.json."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(orjson.dumps(config).decode())


def check_encoder(encoder: Encoder, plain: Mapping[str, Any], template: Template) -> None:
    """Raises DataError unless renaming left all else as it was, and content cannot reach a special token."""
    special_ids = special_token_ids(plain)
    eos_token_id = special_ids.get(template.eos)
    if eos_token_id is None:
        raise DataError(f'EOS "{template.eos}" is no special token of the tokenizer', fix="give another --eos-token")
    unknown_id = unknown_token_id(plain)
    if unknown_id == eos_token_id:
        raise DataError(f'EOS "{template.eos}" is also the token for unknown text', fix="give another --eos-token")
    reference = make_tokenizer(plain)
    conversation = (Turn("system", SAMPLE_TEXTS[0], False), Turn("human", SAMPLE_TEXTS[2], False))
    answer = Turn("bot", "return b", True)
    texts = [*SAMPLE_TEXTS, template.stretches((*conversation, answer))[0].text]
    private_texts = [*SAMPLE_TEXTS, encoder.template.stretches((*conversation, answer))[0].text]
    for text, private_text in zip(texts, private_texts, strict=True):
        expected = reference.encode(text, add_special_tokens=False).ids
        if encoder.prompt_tokenizer.encode(private_text, add_special_tokens=False).ids != expected:
            raise DataError(
                f"the tokenizer cannot tell special tokens from text: {text!r} would be encoded differently"
            )
    forbidden = set(special_ids.values()) - {unknown_id}
    # The bare number is what a private name comes down to under a normalizer that removes noncharacters.
    lookalikes = [*special_ids, *map(str, special_ids.values())]
    for tokenizer in (encoder.prompt_tokenizer, encoder.span_tokenizer):
        for encoding in tokenizer.encode_batch_fast(lookalikes, add_special_tokens=False):
            if forbidden & set(encoding.ids):
                raise DataError("the tokenizer cannot tell special tokens from text that looks like them")
    if encoder.encode_batch([(answer,)]).input_ids[-1] != eos_token_id:
        raise DataError(f'the tokenizer does not encode EOS "{template.eos}" as one token after text')
