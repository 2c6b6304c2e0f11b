"""The conversation template: which text the model sees, and which stretches of it are supervised."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mft_data.encoding.special_tokens import special_pattern
from mft_data.reading.conversation import Conversation

MFT_MARKERS = {"system": "<s>system\n", "human": "<s>human\n", "bot": "<s>bot\n"}


class Stretch(NamedTuple):
    """A piece of the rendered conversation that is encoded on its own."""

    text: str
    is_supervised: bool


class Template(Protocol):
    """What an encoder asks of a template; `stop` ends the bot turns, `eos` ends documents and is the tokenizer's."""

    name: str
    eos: str

    @property
    def stop(self) -> str:
        """The text of the special token that ends every bot turn."""

    def stretches(self, conversation: Conversation) -> list[Stretch]:
        """Unsupervised and supervised stretches in turn; joined, they are the rendered conversation.

        A supervised one is what the model has to answer in one bot turn, up to and including its stop token; the text
        before it is the prompt at inference. Raises RecordError if the template cannot take the conversation.
        """

    def renamed(self, names: Mapping[str, str]) -> "Template":
        """The same template, writing `names[text]` for every special token `text` of its own."""

    def jinja(self) -> str:
        """The chat template that renders the very same text from a list of messages."""

    def sha256(self) -> str:
        """Hex digest of the Jinja form, which names every text of the template."""


@dataclass(frozen=True, slots=True)
class MftTemplate:
    """Role markers and the stop token's text; a newline follows system and human contents, EOS follows bot contents."""

    name: str
    markers: Mapping[str, str]
    eos: str

    @property
    def stop(self) -> str:
        """The text of the special token that ends every bot turn: EOS."""
        return self.eos

    def stretches(self, conversation: Conversation) -> list[Stretch]:
        """Unsupervised and supervised stretches in turn; a supervised one is one bot turn's content and its EOS.

        An unsupervised stretch runs up to and including the marker of the next supervised turn. Joined, the
        stretches are the rendered conversation.
        """
        stretches: list[Stretch] = []
        unsupervised = ""
        for turn in conversation:
            marker = self.markers.get(turn.role, "")
            if turn.is_supervised:
                if unsupervised or marker:
                    stretches.append(Stretch(unsupervised + marker, is_supervised=False))
                stretches.append(Stretch(turn.content + self.eos, is_supervised=True))
                unsupervised = ""
            else:
                unsupervised += marker + turn.content + (self.eos if turn.role == "bot" else "\n")
        if unsupervised:
            stretches.append(Stretch(unsupervised, is_supervised=False))
        return stretches

    def renamed(self, names: Mapping[str, str]) -> "MftTemplate":
        """The same template, writing `names[text]` for every special token `text` of its own."""
        pattern = special_pattern(names)
        markers = {role: pattern.sub(lambda match: names[match[0]], marker) for role, marker in self.markers.items()}
        return MftTemplate(self.name, markers, names[self.eos])

    def jinja(self) -> str:
        """The chat template that renders the very same text from a list of messages."""
        system, human, bot = (jinja_literal(self.markers[role]) for role in ("system", "human", "bot"))
        lines = (
            "{%- for message in messages -%}",
            "    {%- if message['role'] == 'system' -%}",
            f"        {{{{- {system} + message['content'] + \"\\n\" -}}}}",
            "    {%- elif message['role'] in ['human', 'user'] -%}",
            f"        {{{{- {human} + message['content'] + \"\\n\" -}}}}",
            "    {%- elif message['role'] in ['bot', 'assistant'] -%}",
            f"        {{{{- {bot} + message['content'] + {jinja_literal(self.eos)} -}}}}",
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


def jinja_literal(text: str) -> str:
    """`text` as a Jinja string literal; non-ASCII characters stay themselves."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'
