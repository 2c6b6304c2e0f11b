"""What a chat template writes before the content of each role."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

# Contents that no template writes by itself.
CONTENTS = [f"zqx{number}content" for number in range(5)]
ROLES = ("system", "user", "assistant", "user", "assistant")


def role_markers(template: str, variables: dict[str, Any]) -> dict[str, str]:
    """The text that stands before each role's content, by role; without a system turn if the template has none.

    Empty if the template renders no such conversation, or two roles behind the same text.
    """
    befores: dict[str, list[str]] = {}
    for first in (0, 1):
        messages = [
            {"role": role, "content": content} for role, content in zip(ROLES[first:], CONTENTS[first:], strict=True)
        ]
        try:
            text = render(template, messages, variables)
        # Whatever the expressions of a template can raise.
        except Exception:  # noqa: S112
            continue
        done = 0
        for message in messages:
            start = text.find(message["content"], done)
            if start < 0:
                return {}
            befores.setdefault(message["role"], []).append(text[done:start])
            done = start + len(message["content"])
    markers = {role: common_end(texts) for role, texts in befores.items()}
    return markers if len(set(markers.values())) == len(markers) and all(markers.values()) else {}


def render(template: str, messages: list[dict[str, str]], variables: dict[str, Any]) -> str:
    """The conversation as transformers renders it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template([messages], chat_template=template, **variables)
    return rendered[0][0]


def common_end(texts: list[str]) -> str:
    """The longest text that all of these end with."""
    columns = zip(*(reversed(text) for text in texts), strict=False)
    same = takewhile(lambda characters: len(set(characters)) == 1, columns)
    return "".join(characters[0] for characters in same)[::-1]
