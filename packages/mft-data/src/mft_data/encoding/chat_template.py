"""Any Jinja chat template: rendered as Hugging Face renders it, then cut where the supervised spans begin and end."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson

from mft_data.encoding.special_tokens import special_pattern
from mft_data.encoding.template import Stretch
from mft_data.errors import DataError, RecordError, plural
from mft_data.reading.conversation import RESERVED_CHARACTER, TOOLS
from mft_data.reading.extras import EXTRA_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from mft_data.reading.conversation import Conversation, Turn

# Stands inside the text of special tokens in contents while a template renders them; a Unicode noncharacter.
ESCAPE = "\ufdd2"
CHAT_ROLES = {"system": "system", "human": "user", "bot": "assistant", "tool": "tool"}
# Strings under these keys tell what a thing is, and steer templates.
KINDS = {"role", "type"}
GENERATION_MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# A conversation that every template can take.
SAMPLE = [{"role": "user", "content": "Add 1 and 2."}, {"role": "assistant", "content": "The sum is 3."}]

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A Jinja chat template and what its rendering depends on.

    A bot turn's span begins where the prompt at inference, rendered on its own, ends. It ends after the stop token of
    the text between generation markers or, if the template has none, of what the turn adds to the rendering.
    """

    name: str
    source: str
    variables: Mapping[str, Any]  # bos_token, eos_token and the like
    names: Mapping[str, str]  # what to write for the text of each special token
    pattern: re.Pattern[str]  # matches those texts
    eos: str
    stop: str
    # The special tokens of conversations of one shape, in order; filled as shapes are met.
    tokens_by_shape: dict[tuple[str, ...], list[str]] = field(default_factory=dict, repr=False, compare=False)
    tools: tuple[dict[str, Any], ...] = ()  # that the model may call in the conversation at hand

    @property
    def taken_extras(self) -> frozenset[str]:
        """The EXTRA_FIELDS of records that its source speaks of."""
        return frozenset(name for name in EXTRA_FIELDS if re.search(rf"\b{name}\b", self.source))

    def stretches(self, conversation: Conversation) -> list[Stretch]:
        """Unsupervised and supervised stretches in turn; joined, they are the rendered conversation.

        Every special token in them is the template's own. Raises RecordError if the template refuses the conversation,
        renders parts of it differently than the whole, or makes special tokens out of contents.
        """
        if conversation[0].role == "text":
            return [Stretch(conversation[0].content + self.names[self.eos], is_supervised=True)]
        if conversation[0].role == TOOLS:
            return replace(self, tools=tuple(orjson.loads(conversation[0].content))).stretches(conversation[1:])
        messages = [message_of(turn) for turn in conversation]
        supervised = [position for position, turn in enumerate(conversation) if turn.is_supervised]
        self.check_tool_turns(messages)
        is_plain = not self.tools and not any(turn.extra for turn in conversation)
        texts = (turn.content for turn in conversation) if is_plain else strings_of([messages, self.tools])
        if any(map(self.pattern.search, texts)):
            stretches = self.with_tools(self.escaped).cut(self.escaped(messages), supervised)
            # A template that looks for special tokens in contents, or counts or quotes characters, meets the escapes.
            if "".join(stretch.text for stretch in stretches).replace(ESCAPE, "") != self.render(messages):
                raise RecordError("the template renders special tokens in a content in a way of its own")
            renamed = self.renamed_stretches(stretches, messages)
            return [Stretch(stretch.text.replace(ESCAPE, ""), stretch.is_supervised) for stretch in renamed]
        return self.renamed_stretches(self.cut(messages, supervised), messages)

    def renamed(self, names: Mapping[str, str]) -> ChatTemplate:
        """The same template, writing `names[text]` for every special token `text` of its own."""
        return replace(self, names=names, pattern=special_pattern(names), tokens_by_shape={})

    def with_arguments(self, arguments: Mapping[str, Any]) -> ChatTemplate:
        """The same template rendered with these variables, too; raises RecordError if it ends bot turns otherwise."""
        if not arguments:
            return self
        template = replace(self, variables={**self.variables, **arguments}, tokens_by_shape={})
        stop = stop_token(template)
        if stop != self.stop:
            raise RecordError(f'with them the template ends bot turns with "{stop}" instead of "{self.stop}"')
        template.cut(SAMPLE, [1])
        return template

    def jinja(self) -> str:
        """The chat template itself."""
        return self.source

    def sha256(self) -> str:
        """Hex digest of the chat template."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def with_tools(self, change: Callable[[Any], Any]) -> ChatTemplate:
        """The same template with changed tools."""
        return replace(self, tools=tuple(change(list(self.tools)))) if self.tools else self

    def check_tool_turns(self, messages: Messages) -> None:
        """Raises RecordError if the template leaves out what tools say."""
        for position, message in enumerate(messages):
            if message["role"] != "tool" or not message["content"].strip():
                continue
            other = [*messages[:position], {**message, "content": message["content"] + "?"}]
            if self.render(other) == self.render(messages[: position + 1]):
                raise RecordError(f"the template leaves out round {position + 1}, a tool turn")

    def cut(self, messages: Messages, supervised: list[int]) -> list[Stretch]:
        """The rendered conversation as stretches; `supervised` are the positions of the bot turns trained on."""
        marked = {}
        if GENERATION_MARKER.search(self.source):
            text, marked = self.render_marked(messages)
        else:
            text = self.render(messages)
        stretches = []
        done = 0
        for position in supervised:
            start = self.turn_start(messages, position, text)
            if start < done:
                raise RecordError(f"the template writes less before round {position + 1} than up to the round before")
            if not marked:
                limit = self.turn_end(messages, position, text)
            elif start == marked[position][0]:
                limit = marked[position][1]
            else:
                raise RecordError(
                    f"the generation markers of round {position + 1} do not begin where the generation prompt ends",
                    fix="place {% generation %} right after the text that the generation prompt also writes",
                )
            end = self.stop_end(text[start:limit], position) + start
            stretches += [Stretch(text[done:start], is_supervised=False), Stretch(text[start:end], is_supervised=True)]
            done = end
        if done < len(text):
            stretches.append(Stretch(text[done:], is_supervised=False))
        return stretches

    def turn_start(self, messages: Messages, position: int, text: str) -> int:
        """Where in the conversation's `text` the prompt at inference of one bot turn ends."""
        prompt = self.render(messages[:position], add_generation_prompt=True)
        if not text.startswith(prompt):
            # Some templates begin only the last turn so: with the reasoning that they drop from earlier ones.
            is_last = position + 1 == len(messages)
            raise RecordError(
                f"the template renders the prompt before round {position + 1} differently than the whole conversation "
                f"({first_difference(prompt, text)})",
                fix=("" if is_last else "train on the last turn of each conversation with --train-on last, or ")
                + "let bot turns begin with what the generation prompt says",
            )
        return len(prompt)

    def turn_end(self, messages: Messages, position: int, text: str) -> int:
        """Where in the conversation's `text` a bot turn ends, without generation markers."""
        if position + 1 == len(messages):
            return len(text)
        beginning = self.render(messages[: position + 1])
        if not text.startswith(beginning):
            raise RecordError(
                f"the template renders the rounds up to {position + 1} differently than the whole conversation "
                f"({first_difference(beginning, text)})",
                fix="train on the last turn of each conversation with --train-on last, or put {% generation %} and "
                "{% endgeneration %} around what the model writes, in the template",
            )
        return len(beginning)

    def stop_end(self, turn: str, position: int) -> int:
        """Where in the text of a bot turn its stop token ends."""
        body, stop, rest = turn.rpartition(self.stop)
        if not stop or rest.strip():
            raise RecordError(
                f'what the model writes in round {position + 1} does not end with the stop token "{self.stop}"',
                fix="let the template end every bot turn with it, before {% endgeneration %} if it has that",
            )
        if not body.strip():
            raise RecordError(f"the template leaves nothing of round {position + 1}")
        return len(body) + len(stop)

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """What apply_chat_template renders; raises RecordError."""
        return self.apply(messages, add_generation_prompt=add_generation_prompt)[0][0]

    def render_marked(self, messages: Messages) -> tuple[str, dict[int, tuple[int, int]]]:
        """The rendered conversation, and which of its characters are marked as generated, by position of the turn."""
        (text,), (marked,) = self.apply(messages, return_assistant_tokens_mask=True)
        bots = [position for position, message in enumerate(messages) if message["role"] == "assistant"]
        if len(marked) != len(bots):
            raise RecordError(
                f"the template has {len(marked)} {plural(len(marked), 'piece')} of text between generation markers "
                f"for {len(bots)} bot {plural(len(bots), 'turn')}",
                fix="put {% generation %} and {% endgeneration %} once around each",
            )
        return text, dict(zip(bots, marked, strict=True))

    def apply(self, messages: Messages, **options: bool) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """The rendered text and the marked pieces, in a list of one each; raises RecordError if the template raises."""
        from transformers.utils.chat_template_utils import render_jinja_template

        tools = list(self.tools) or None
        settings: dict[str, Any] = {"chat_template": self.source, "tools": tools, **options, **self.variables}
        try:
            rendered: Any = render_jinja_template([messages], **settings)
        # Whatever the expressions of a template can raise.
        except Exception as error:
            raise RecordError(f"the template refuses the conversation ({first_line(error)})") from error
        return rendered

    def escaped(self, messages: Messages) -> Messages:
        """Messages, or tools, with an escape after the first character of every special token in a string."""
        if any(ESCAPE in text for text in strings_of(messages)):
            raise RecordError("a content holds a special token and the noncharacter U+FDD2, which is reserved")
        if any(self.pattern.search(key) for key in keys_of(messages)):
            raise RecordError("a key in a tool or its use holds a special token")
        beginnings = re.compile(f"(?={self.pattern.pattern})(?s:.)")
        return with_strings(messages, lambda text: beginnings.sub(rf"\g<0>{ESCAPE}", text))

    def renamed_stretches(self, stretches: list[Stretch], messages: Messages) -> list[Stretch]:
        """The stretches with the names of special tokens; raises RecordError if they are not the template's own."""
        split_texts = [self.pattern.split(stretch.text) for stretch in stretches]
        found = [text for split_text in split_texts for text in split_text[1::2]]
        if found != self.own_tokens(messages):
            raise RecordError("the special tokens that the template writes depend on the contents")
        for split_text in split_texts:
            split_text[1::2] = map(self.names.__getitem__, split_text[1::2])
        texts = map("".join, split_texts)
        return [Stretch(text, stretch.is_supervised) for text, stretch in zip(texts, stretches, strict=True)]

    def own_tokens(self, messages: Messages) -> list[str]:
        """The texts of the special tokens that the template writes around harmless contents of the same turns."""
        if self.tools or any(message.keys() != {"role", "content"} for message in messages):
            likeness = with_strings(messages, harmless)
            return self.pattern.findall(self.with_tools(lambda tools: with_strings(tools, harmless)).render(likeness))
        contents = [harmless(message["content"]) for message in messages]
        shape = tuple(message["role"] + content for message, content in zip(messages, contents, strict=True))
        if shape not in self.tokens_by_shape:
            likeness = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
            self.tokens_by_shape[shape] = self.pattern.findall(self.render(likeness))
        return self.tokens_by_shape[shape]


def message_of(turn: Turn) -> dict[str, Any]:
    """A turn as chat templates take it."""
    message = {"role": CHAT_ROLES[turn.role], "content": turn.content}
    return message | orjson.loads(turn.extra) if turn.extra else message


def with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with its strings changed, all but keys and those that tell what a thing is."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: inner if key in KINDS else with_strings(inner, change) for key, inner in value.items()}
    return [with_strings(inner, change) for inner in value] if isinstance(value, list | tuple) else value


def strings_of(value: Any) -> Iterator[str]:
    """The strings and the keys in a JSON value, of any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from strings_of(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings_of(inner)


def keys_of(value: Any) -> Iterator[str]:
    """The keys, and the strings that tell what a thing is, in a JSON value of any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings_of(inner) if key in KINDS else keys_of(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from keys_of(inner)


def harmless(content: str) -> str:
    """A content that is empty or blank if the one given is, and holds no special token."""
    if not content:
        return ""
    return " " if content.isspace() else "x"


def first_difference(part: str, whole: str) -> str:
    """Where a text leaves another one, in words."""
    position = next(
        (n for n, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), min(len(part), len(whole))
    )
    return f"{part[position : position + 20]!r} instead of {whole[position : position + 20]!r}"


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def chat_template(
    name: str, source: str, variables: Mapping[str, Any], special_texts: Iterable[str], eos: str
) -> ChatTemplate:
    """The chat template; raises DataError if it does not end a bot turn with a special token."""
    if RESERVED_CHARACTER in source:
        raise DataError("the noncharacter U+FDD0 is reserved", where=f"chat template {name}")
    names = {text: text for text in special_texts}
    template = ChatTemplate(name, source, variables, names, special_pattern(names), eos, stop="")
    try:
        template = replace(template, stop=stop_token(template))
        template.cut(SAMPLE, [1])
        return template
    except RecordError as error:
        line = getattr(error.__cause__, "lineno", None)  # of a syntax error
        where = f"chat template {name}" + (f" line {line}" if line else "")
        raise DataError(error.reason, where=where, fix=error.fix) from error


def stop_token(template: ChatTemplate) -> str:
    """The special token that ends the bot turn of SAMPLE; raises RecordError."""
    text = template.render(SAMPLE)
    start = template.turn_start(SAMPLE, 1, text)
    before_answer, answer, _ = text[start:].rpartition(SAMPLE[1]["content"])
    has_generation_prompt = template.render(SAMPLE[:1]) != text[:start]
    if answer and before_answer.strip() and not has_generation_prompt:
        raise RecordError(
            f"the template has no generation prompt, and writes {before_answer!r} before an answer",
            fix="let it write that for add_generation_prompt",
        )
    if SAMPLE[0]["content"] in text[start:]:
        raise RecordError(
            "the template leaves the question out when it writes the generation prompt",
            fix="let add_generation_prompt only add to what the template writes",
        )
    *_, stop, rest = ["", *template.pattern.split(text[start:])]
    if not stop or rest.strip():
        raise RecordError(
            f"the template ends a bot turn with {text[start:][-20:]!r}, which is no special token to stop at",
            fix="end it with one, or make the token that it ends with the stop token by --eos-token",
        )
    return stop
