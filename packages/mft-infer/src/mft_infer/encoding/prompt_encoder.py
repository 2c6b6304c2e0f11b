"""The prompt encoder of a tokenizer: ids of raw text and of conversations, in which no text can be a special token."""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson

from mft_infer.encoding.chat_template import ChatTemplate, Conversation, strings
from mft_infer.encoding.special_tokens import RESERVED, continuing, private_names, renamed, special_pattern
from mft_infer.errors import InferError, PromptError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# What a tokenizer has to treat alike before and after its special tokens are renamed.
SAMPLE_TEXTS = (
    "def add(a, b):\n    return a + b\n",
    "  two spaces, a tab\tand\u00a0more",
    "naïve café, 你好 🙂 </>|[]{}",
)


class PromptEncoder:
    """Encodes prompts as mft-data encodes those of training.

    Special tokens have private names in it, which only the chat template writes. Where a tokenizer does not bear that
    (its normalizer changes the names), they keep their own and prompts with such a text in them are refused.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
        if not tokenizer.is_fast:
            raise InferError("the tokenizer has no fast version", where=name, fix="convert it to a tokenizer.json")
        config = orjson.loads(tokenizer.backend_tokenizer.to_str())
        names = private_names(config)
        self._tokenizer = tokenizer
        self._pattern = special_pattern(names)
        self._prompt_config = renamed(config, names)
        self._prompt_tokenizer = _tokenizer(self._prompt_config)
        self._has_private_names = _are_kept(names, config, self._prompt_tokenizer, tokenizer.backend_tokenizer)
        self._names = names
        if not self._has_private_names:
            self._names = {text: text for text in names}
            self._prompt_config = renamed(config, self._names)
            self._prompt_tokenizer = _tokenizer(self._prompt_config)
        self._templates: dict[str, ChatTemplate] = {}

    def encode_text(self, text: str) -> list[int]:
        """The ids of a raw prompt with what the tokenizer puts before every text; raises PromptError."""
        self._check_text(text)
        return self._prompt_tokenizer.encode(text).ids

    def encode_marked_text(self, text: str) -> list[int]:
        """The ids of a raw prompt in which the texts of special tokens are special tokens."""
        return self._tokenizer.encode(text)

    def encode_conversation(self, conversation: Conversation) -> list[int]:
        """The ids of a conversation up to where the answer begins; raises PromptError."""
        if not self._has_private_names:
            for text in strings([conversation.messages, conversation.tools]):
                self._check_text(text)
        template = self._template(conversation.tools)
        stop = "" if template.stop is None else self._names[template.stop]
        stop_length = len(self._prompt_tokenizer.encode(stop, add_special_tokens=False).ids)
        ids: list[int] = []
        for number, stretch in enumerate(template.prompt(conversation)):
            if stretch.is_answer:
                ids += self._answer_tokenizer.encode(stretch.text, add_special_tokens=False).ids
            elif number == 0:
                ids += self._prompt_tokenizer.encode(stretch.text, add_special_tokens=False).ids
            else:
                ids += self._prompt_tokenizer.encode(stop + stretch.text, add_special_tokens=False).ids[stop_length:]
        return ids

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The special tokens that the chat template puts after an answer."""
        if self._tokenizer.chat_template is None:
            return frozenset()
        template = self._template(None)
        texts = {text for text in (template.stop, template.first_stop) if text is not None}
        ids: Any = self._tokenizer.convert_tokens_to_ids(sorted(texts))
        return frozenset(ids)

    @cached_property
    def _answer_tokenizer(self) -> "Tokenizer":
        within = continuing(self._prompt_config)
        return self._prompt_tokenizer if within == self._prompt_config else _tokenizer(within)

    def _template(self, tools: list[dict[str, Any]] | None) -> ChatTemplate:
        source = self._tokenizer.get_chat_template(tools=tools)
        if source not in self._templates:
            self._templates[source] = ChatTemplate(source, self._tokenizer.special_tokens_map, self._names)
        return self._templates[source]

    def _check_text(self, text: str) -> None:
        if RESERVED in text:
            raise PromptError("the prompt holds the noncharacter U+FDD0, which is reserved")
        found = None if self._has_private_names else self._pattern.search(text)
        if found:
            raise PromptError(f'the tokenizer cannot tell "{found[0]}" in a prompt from the special token')


def _are_kept(
    names: Mapping[str, str], config: Mapping[str, Any], tokenizer: "Tokenizer", original: "Tokenizer"
) -> bool:
    """Whether the renamed tokenizer reads text as the original does, and only private names as special tokens."""
    if any(tokenizer.encode(text).ids != original.encode(text).ids for text in SAMPLE_TEXTS):
        return False
    ids = {token["content"]: token["id"] for token in config["added_tokens"] if token["special"]}
    unknown = config["model"].get("unk_id", ids.get(config["model"].get("unk_token")))
    forbidden = set(ids.values()) - {unknown}
    for text, token_id in ids.items():
        if token_id not in tokenizer.encode(names[text], add_special_tokens=False).ids:
            return False
        # The bare number is what a private name comes down to under a normalizer that removes noncharacters.
        for lookalike in (text, str(token_id)):
            if forbidden & set(tokenizer.encode(lookalike, add_special_tokens=False).ids):
                return False
    return True


def _tokenizer(config: Mapping[str, Any]) -> "Tokenizer":
    from tokenizers import Tokenizer

    return Tokenizer.from_str(orjson.dumps(config).decode())
