"""The chat template: renders a conversation up to where the answer begins, cut where training cuts it.

In training each answer is encoded on its own, from where its generation prompt ends to its stop token. The answers in
the history of a prompt are cut out in the same way, so that a prompt has the ids that it had there.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from mft_infer.encoding.special_tokens import RESERVED, special_pattern
from mft_infer.errors import PromptError

# Stands inside the text of special tokens in contents while a template renders them; a Unicode noncharacter.
ESCAPE = "\ufdd2"
GENERATION_MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
QUESTION = {"role": "user", "content": "Add 1 and 2."}
ANSWER = {"role": "assistant", "content": "The sum is 3."}

Messages = list[dict[str, Any]]


class Stretch(NamedTuple):
    """A piece of a rendered conversation that is encoded on its own; `is_answer` if the model wrote it."""

    text: str
    is_answer: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template renders; `tools` are JSON schemas, `arguments` the template's own variables."""

    messages: Messages
    tools: list[dict[str, Any]] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


class ChatTemplate:
    """A Jinja chat template with the tokenizer's names for the special tokens it writes."""

    def __init__(self, source: str, variables: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self._source = source
        self._variables = variables
        self._names = names
        self._pattern = special_pattern(names)

    @cached_property
    def stop(self) -> str | None:
        """The special token that ends an answer at the end of a conversation, None if nothing does."""
        rest = self._after_answer()
        found = list(self._pattern.finditer(rest))
        return found[-1][0] if found and not rest[found[-1].end() :].strip() else None

    @cached_property
    def first_stop(self) -> str | None:
        """The special token right after an answer, which may be followed by another one."""
        found = self._pattern.match(self._after_answer().lstrip())
        return found[0] if found else None

    def prompt(self, conversation: Conversation) -> list[Stretch]:
        """The rendered conversation and generation prompt as stretches, special tokens under their private names.

        Raises PromptError if the template refuses the conversation, or a content cannot be kept apart from the
        template's own special tokens.
        """
        texts = list(strings([conversation.messages, conversation.tools, dict(conversation.arguments)]))
        if any(RESERVED in text for text in texts):
            raise PromptError("the prompt holds the noncharacter U+FDD0, which is reserved")
        if not any(self._pattern.search(text) for text in texts):
            return self._private(self._cut(conversation))
        if any(ESCAPE in text for text in texts):
            raise PromptError("the prompt holds a special token and the noncharacter U+FDD2, which is reserved")
        stretches = self._cut(_escaped(conversation, self._pattern))
        # A template that looks for special tokens in contents, or counts or quotes characters, meets the escapes.
        if "".join(stretch.text for stretch in stretches).replace(ESCAPE, "") != self._render(conversation):
            raise PromptError("the chat template renders special tokens in a content in a way of its own")
        return [Stretch(text.replace(ESCAPE, ""), is_answer) for text, is_answer in self._private(stretches)]

    def _cut(self, conversation: Conversation) -> list[Stretch]:
        """The rendered prompt as stretches; as one, if the template does not render a history as it grew."""
        text, marked = self._render_marked(conversation)
        stretches, done = [], 0
        for position, message in enumerate(conversation.messages):
            if message.get("role") != "assistant":
                continue
            span = self._answer_span(conversation, position, text, marked.get(position))
            if span is None or span[0] < done:
                return [Stretch(text, is_answer=False)]
            stretches += [Stretch(text[done : span[0]], is_answer=False), Stretch(text[slice(*span)], is_answer=True)]
            done = span[1]
        return [*stretches, Stretch(text[done:], is_answer=False)]

    def _answer_span(
        self, conversation: Conversation, position: int, text: str, marked: tuple[int, int] | None
    ) -> tuple[int, int] | None:
        """Where in the prompt's `text` an answer and its stop token are; None if that cannot be told."""
        messages = conversation.messages
        before = self._render(_with(conversation, messages[:position]))
        if self.stop is None or not text.startswith(before):
            return None
        if marked is None:
            upto = self._render(_with(conversation, messages[: position + 1]), add_generation_prompt=False)
            limit = len(upto) if text.startswith(upto) else -1
        else:
            limit = marked[1] if marked[0] == len(before) else -1
        body, stop, rest = text[len(before) : max(limit, 0)].rpartition(self.stop)
        if not stop or rest.strip() or not body.strip():
            return None
        return len(before), len(before) + len(body) + len(stop)

    def _after_answer(self) -> str:
        """What the template writes after the answer of a conversation of one question and one answer."""
        try:
            text = self._render(Conversation([QUESTION, ANSWER]), add_generation_prompt=False)
        except PromptError:
            return ""
        return text.rpartition(ANSWER["content"])[2] if ANSWER["content"] in text else ""

    def _render(self, conversation: Conversation, *, add_generation_prompt: bool = True) -> str:
        return self._apply(conversation, add_generation_prompt=add_generation_prompt)[0][0]

    def _render_marked(self, conversation: Conversation) -> tuple[str, dict[int, tuple[int, int]]]:
        """The prompt, and which of its characters are marked as generated, by the position of the message."""
        answers = [index for index, message in enumerate(conversation.messages) if message.get("role") == "assistant"]
        if not answers or not GENERATION_MARKER.search(self._source):
            return self._render(conversation), {}
        (text,), (marked,) = self._apply(conversation, add_generation_prompt=True, return_assistant_tokens_mask=True)
        return text, dict(zip(answers, marked, strict=True)) if len(answers) == len(marked) else {}

    def _apply(self, conversation: Conversation, **options: bool) -> Any:
        from transformers.utils.chat_template_utils import render_jinja_template

        settings: dict[str, Any] = {**self._variables, **conversation.arguments, **options}
        settings |= {"tools": conversation.tools, "chat_template": self._source}
        try:
            return render_jinja_template([conversation.messages], **settings)
        # Whatever the expressions of a template can raise.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise PromptError(f"the chat template refuses the messages: {reason}") from error

    def _private(self, stretches: list[Stretch]) -> list[Stretch]:
        return [
            Stretch(self._pattern.sub(lambda found: self._names[found[0]], text), is_answer)
            for text, is_answer in stretches
        ]


def _with(conversation: Conversation, messages: Messages) -> Conversation:
    return Conversation(messages, conversation.tools, conversation.arguments)


def _escaped(conversation: Conversation, pattern: re.Pattern[str]) -> Conversation:
    """The conversation with an escape after the first character of every special token in it."""
    beginnings = re.compile(f"(?={pattern.pattern})(?s:.)")

    def escape(text: str) -> str:
        return beginnings.sub(rf"\g<0>{ESCAPE}", text)

    return Conversation(
        _mapped(conversation.messages, escape),
        _mapped(conversation.tools, escape),
        _mapped(dict(conversation.arguments), escape),
    )


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with all its strings changed, names of fields among them."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {change(name): _mapped(item, change) for name, item in value.items()}
    return value


def strings(value: Any) -> Iterator[str]:
    """All the strings in a JSON value, names of fields among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value:
            yield from strings(item)
        if isinstance(value, dict):
            yield from strings(list(value.values()))
