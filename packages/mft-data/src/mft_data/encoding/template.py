"""The conversation template: which text the model sees, and which stretches of it are supervised."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from mft_data.encoding.special_tokens import special_pattern
from mft_data.errors import RecordError
from mft_data.reading.conversation import Conversation, Turn

MFT_MARKERS = {"system": "<s>system\n", "human": "<s>human\n", "bot": "<s>bot\n"}


class Stretch(NamedTuple):
    """A piece of the rendered conversation that is encoded on its own."""

    text: str
    is_supervised: bool


class Template(Protocol):
    """What an encoder asks of a template; `stop` ends the bot turns, `eos` ends documents and is the tokenizer's."""

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        ...

    @property
    def eos(self) -> str:
        """The text of the tokenizer's EOS token."""
        ...

    @property
    def stop(self) -> str:
        """The text of the special token that ends every bot turn."""

    @property
    def taken_extras(self) -> frozenset[str]:
        """The EXTRA_FIELDS of records that it makes something of."""
        ...

    def stretches(self, conversation: Conversation) -> list[Stretch]:
        """Unsupervised and supervised stretches in turn; joined, they are the rendered conversation.

        A supervised one is what the model has to answer in one bot turn, up to and including its stop token; the text
        before it is the prompt at inference. Raises RecordError if the template cannot take the conversation.
        """

    def renamed(self, names: Mapping[str, str]) -> "Template":
        """The same template, writing `names[text]` for every special token `text` of its own."""

    def with_arguments(self, arguments: Mapping[str, Any]) -> "Template":
        """The same template rendered with these variables, too; raises RecordError if it cannot be."""

    def jinja(self) -> str:
        """The chat template that renders the very same text from a list of messages."""

    def sha256(self) -> str:
        """Hex digest of the Jinja form, which names every text of the template."""


@dataclass(frozen=True, slots=True)
class MftTemplate:
    """Role markers and the stop token's text; a newline follows system and human contents, and EOS of bot contents."""

    name: str
    markers: Mapping[str, str]
    eos: str
    answer_end: str = ""  # between a bot content, or a document, and EOS
    spaces: tuple[str, ...] = ()  # characters of contents that are written as a space

    @property
    def stop(self) -> str:
        """The text of the special token that ends every bot turn: EOS."""
        return self.eos

    @property
    def taken_extras(self) -> frozenset[str]:
        """None: it has turns of text only."""
        return frozenset()

    def stretches(self, conversation: Conversation) -> list[Stretch]:
        """Unsupervised and supervised stretches in turn; a supervised one is one bot turn's content up to its EOS.

        An unsupervised stretch runs up to and including the marker of the next supervised turn; it begins with the
        newline after EOS. Joined, the stretches are the rendered conversation.
        Raises RecordError if there is a tool turn.
        """
        stretches: list[Stretch] = []
        unsupervised = ""
        for number, turn in enumerate(conversation, start=1):
            if turn.role == "tool":
                raise RecordError(
                    f"round {number} is a tool turn, which the template {self.name} does not have",
                    fix="choose a chat template that does, such as --template tokenizer",
                )
            marker = self.markers.get(turn.role, "")
            content = self.content(turn)
            if turn.is_supervised:
                if unsupervised or marker:
                    stretches.append(Stretch(unsupervised + marker, is_supervised=False))
                stretches.append(Stretch(content, is_supervised=True))
                unsupervised = "" if turn.role == "text" else "\n"
            else:
                unsupervised += marker + content + "\n"
        if unsupervised:
            stretches.append(Stretch(unsupervised, is_supervised=False))
        return stretches

    def content(self, turn: Turn) -> str:
        """What stands between the marker of a turn and the newline after it: with EOS unless it is a prompt's turn."""
        content = turn.content
        for space in self.spaces:
            content = content.replace(space, " ")
        return content + self.answer_end + self.eos if turn.role in ("bot", "text") else content

    def renamed(self, names: Mapping[str, str]) -> "MftTemplate":
        """The same template, writing `names[text]` for every special token `text` of its own."""
        pattern = special_pattern(names)
        markers = {role: pattern.sub(lambda match: names[match[0]], marker) for role, marker in self.markers.items()}
        return replace(self, markers=markers, eos=names[self.eos])

    def with_arguments(self, arguments: Mapping[str, Any]) -> "MftTemplate":
        """The same template, which takes no arguments; raises RecordError if there are any."""
        if arguments:
            raise RecordError(f"the template {self.name} takes none", fix="leave them out, or choose a chat template")
        return self

    def jinja(self) -> str:
        """The chat template that renders the very same text from a list of messages."""
        system, human, bot = (jinja_literal(self.markers[role]) for role in ("system", "human", "bot"))
        filters = "".join(f" | replace({jinja_literal(space)}, ' ')" for space in self.spaces)
        content = f"(message['content']{filters})" if filters else "message['content']"
        lines = (
            "{%- for message in messages -%}",
            "    {%- if message['role'] == 'system' -%}",
            f'        {{{{- {system} + {content} + "\\n" -}}}}',
            "    {%- elif message['role'] in ['human', 'user'] -%}",
            f'        {{{{- {human} + {content} + "\\n" -}}}}',
            "    {%- elif message['role'] in ['bot', 'assistant'] -%}",
            f'        {{{{- {bot} + {content} + {jinja_literal(self.answer_end + self.eos)} + "\\n" -}}}}',
            "    {%- else -%}",
            "        {{- raise_exception('unknown role ' + message['role']) -}}",
            "    {%- endif -%}",
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            f"    {{{{- {bot} -}}}}",
            "{%- endif -%}",
        )
        return "\n".join(lines)

    def sha256(self) -> str:
        """Hex digest of the Jinja form, which names every text of the template."""
        return hashlib.sha256(self.jinja().encode()).hexdigest()


def mft_template(eos: str, markers: Mapping[str, str]) -> MftTemplate:
    """The `mft` template with `markers` in place of its own for the roles given."""
    return MftTemplate("mft", MFT_MARKERS | dict(markers), eos)


def mftcoder_template(eos: str, markers: Mapping[str, str]) -> MftTemplate:
    """The text that MFTCoder 0.5 trains on: a newline before EOS, too, and plain spaces for no-break ones."""
    return MftTemplate("mftcoder", MFT_MARKERS | dict(markers), eos, answer_end="\n", spaces=("\u202f", "\u00a0"))


# The package's own templates, whose role markers can be chosen.
OWN_TEMPLATES: dict[str, Callable[[str, Mapping[str, str]], MftTemplate]] = {
    "mft": mft_template,
    "mftcoder": mftcoder_template,
}


def jinja_literal(text: str) -> str:
    """`text` as a Jinja string literal; non-ASCII characters stay themselves."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'
