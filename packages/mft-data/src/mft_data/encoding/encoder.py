"""Conversations to token ids and loss masks, so that prompts match inference and contents cannot inject."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mft_data.encoding.fim import fim_renderer
from mft_data.encoding.special_tokens import (
    plain_config,
    private_names,
    renamed_config,
    special_token_ids,
    unknown_token_id,
    without_prefix_space,
)
from mft_data.errors import DataError, RecordError
from mft_data.reading.conversation import Conversation, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tokenizers import Tokenizer

    from mft_data.encoding.template import Stretch, Template
    from mft_data.reading.source_settings import SourceSettings

CACHED_WORDS = 1 << 18
# So many characters at most become one by Unicode's canonical composition, which some normalizers apply.
COMPOSED_CHARACTERS = 4

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
    making; an unsupervised one after the first as the text after the stop token that it is.
    """

    config: Mapping[str, Any]  # the decoded tokenizer.json
    template: Template
    private_template: Template  # the same with its special tokens under their private names
    prompt_tokenizer: Tokenizer
    span_tokenizer: Tokenizer
    stop: str  # private name of the token that ends bot turns
    stop_length: int  # ids that it takes at the start of a text
    ids_dtype: str  # uint16 or uint32
    longest_token: int  # characters of a text that one id can stand for, at most

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to other processes as what it is made of, and is made anew there."""
        return unchecked_encoder, (self.config, self.template)

    def encode_batch(self, conversations: Sequence[Conversation]) -> EncodedBatch:
        """Ids and masks of one or more conversations; raises RecordError for one that the template cannot take."""
        return self.encode_rendered(list(map(self.render, conversations)))

    def render(self, conversation: Conversation) -> list[Stretch]:
        """The stretches that `encode_rendered` takes; raises RecordError if the template cannot take it."""
        return self.private_template.stretches(conversation)

    def renderer(self, settings: SourceSettings) -> Callable[[Conversation], list[Stretch]]:
        """What renders the conversations of a source, as `render` does those without settings; raises DataError."""
        if settings.kind == "fim":
            names = private_names(plain_config(self.config))
            token_id = self.prompt_tokenizer.token_to_id
            return fim_renderer(settings.fim, names, token_id, self.template.eos).stretches
        arguments = settings.template_arguments
        return self.private_template.with_arguments(arguments).stretches if arguments else self.render

    def encode_rendered(self, per_conversation: Sequence[list[Stretch]]) -> EncodedBatch:
        """Ids and masks of one or more rendered conversations; the first token of each is never supervised."""
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
        after_stop = [position not in starts for position in prompts]
        spans = [stretches[position].text for position in supervised]
        prompt_texts = [
            self.stop + stretches[position].text if follows else stretches[position].text
            for position, follows in zip(prompts, after_stop, strict=True)
        ]
        ids: list[list[int]] = [[]] * len(stretches)
        encodings = self.span_tokenizer.encode_batch_fast(spans, add_special_tokens=False)
        for position, encoding in zip(supervised, encodings, strict=True):
            ids[position] = encoding.ids
        encodings = self.prompt_tokenizer.encode_batch_fast(prompt_texts, add_special_tokens=False)
        for position, follows, encoding in zip(prompts, after_stop, encodings, strict=True):
            ids[position] = encoding.ids[self.stop_length :] if follows else encoding.ids
        return ids


def make_encoder(config: Mapping[str, Any], template: Template) -> Encoder:
    """The encoder of a tokenizer.json (decoded) and a template; raises DataError if the laws would not hold."""
    plain = plain_config(config)
    check_stop_tokens(plain, template)
    encoder = unchecked_encoder(config, template)
    check_encoder(encoder, plain, template)
    return encoder


def unchecked_encoder(config: Mapping[str, Any], template: Template) -> Encoder:
    """The encoder of a tokenizer and a template that `make_encoder` has taken before."""
    plain = plain_config(config)
    renamed = renamed_config(plain)
    continuing = without_prefix_space(renamed)
    prompt_tokenizer = make_tokenizer(renamed)
    span_tokenizer = prompt_tokenizer if continuing == renamed else make_tokenizer(continuing)
    names = private_names(plain)
    stop = names[template.stop]
    max_token_id = max(prompt_tokenizer.get_vocab(with_added_tokens=True).values())
    return Encoder(
        config=config,
        template=template,
        private_template=template.renamed(names),
        prompt_tokenizer=prompt_tokenizer,
        span_tokenizer=span_tokenizer,
        stop=stop,
        stop_length=len(prompt_tokenizer.encode(stop, add_special_tokens=False)),
        ids_dtype="uint16" if max_token_id < 1 << 16 else "uint32",
        longest_token=longest_token(plain),
    )


def longest_token(config: Mapping[str, Any]) -> int:
    """The most characters of a text that one token stands for, white space that a tokenizer leaves out apart."""
    vocab = config["model"]["vocab"]
    texts = vocab if isinstance(vocab, dict) else [text for text, _ in vocab]
    longest = max(map(len, chain(texts, (token["content"] for token in config["added_tokens"]))))
    return longest if config["normalizer"] is None else longest * COMPOSED_CHARACTERS


def make_tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a decoded tokenizer.json, with room to remember more words than it does by itself."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(orjson.dumps(config).decode())
    model = tokenizer.model
    if hasattr(model, "_resize_cache"):  # BPE and Unigram; it changes speed only
        model._resize_cache(CACHED_WORDS)
        tokenizer.model = model
    return tokenizer


def check_stop_tokens(plain: Mapping[str, Any], template: Template) -> None:
    """Raises DataError unless EOS and the token that ends bot turns are special tokens of the tokenizer."""
    special_ids = special_token_ids(plain)
    for token in (template.eos, template.stop):
        if token not in special_ids:
            raise DataError(f'EOS "{token}" is no special token of the tokenizer', fix="give another --eos-token")
        if special_ids[token] == unknown_token_id(plain):
            raise DataError(f'EOS "{token}" is also the token for unknown text', fix="give another --eos-token")


def check_encoder(encoder: Encoder, plain: Mapping[str, Any], template: Template) -> None:
    """Raises DataError unless renaming left all else as it was, and content cannot reach a special token."""
    special_ids = special_token_ids(plain)
    reference = make_tokenizer(plain)
    question, answer = Turn("human", SAMPLE_TEXTS[2], False), Turn("bot", "return b", True)
    texts = [*SAMPLE_TEXTS, template.stretches((question, answer))[0].text]
    private_texts = [*SAMPLE_TEXTS, encoder.render((question, answer))[0].text]
    system = Turn("system", SAMPLE_TEXTS[0], False)
    # Some chat templates know no system turn; they refuse such records, too.
    with suppress(RecordError):
        texts.append(template.stretches((system, question, answer))[0].text)
        private_texts.append(encoder.render((system, question, answer))[0].text)
    for text, private_text in zip(texts, private_texts, strict=True):
        expected = reference.encode(text, add_special_tokens=False).ids
        if encoder.prompt_tokenizer.encode(private_text, add_special_tokens=False).ids != expected:
            raise DataError(
                f"the tokenizer cannot tell special tokens from text: {text!r} would be encoded differently"
            )
    forbidden = set(special_ids.values()) - {unknown_token_id(plain)}
    # The bare number is what a private name comes down to under a normalizer that removes noncharacters.
    lookalikes = [*special_ids, *map(str, special_ids.values())]
    for tokenizer in (encoder.prompt_tokenizer, encoder.span_tokenizer):
        for encoding in tokenizer.encode_batch_fast(lookalikes, add_special_tokens=False):
            if forbidden & set(encoding.ids):
                raise DataError("the tokenizer cannot tell special tokens from text that looks like them")
    document = Turn("text", SAMPLE_TEXTS[0], True)
    for conversation, token in (((question, answer), template.stop), ((document,), template.eos)):
        batch = encoder.encode_batch([conversation])
        if batch.input_ids[batch.loss_mask == 1][-1] != special_ids[token]:
            raise DataError(f'the tokenizer does not encode EOS "{token}" as one token after text')
