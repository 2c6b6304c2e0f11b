"""What the texts of conversations tell: who says how much, languages of fences, signs of a wrong encoding."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from mft_data.audit.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mft_data.audit.findings import Place

FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)^[ \t]*\1", re.MULTILINE | re.DOTALL)
NO_LANGUAGE = "(none)"
OTHER = "(template)"
# A text that has no turns.
DOCUMENT = "(text)"
SIGNS = {
    "replacement character U+FFFD": re.compile("\ufffd(?!$)"),
    # UTF-8 that was read as Latin-1 or Windows-1252.
    "UTF-8 read as Latin-1": re.compile(
        "\u00c3[\u0080-\u00bf]|\u00c2[\u00a0-\u00bf]|\u00e2\u20ac[\u2122\u0153\u009d\u201c\u201d\u00a6]"
    ),
    "byte-order mark": re.compile("\ufeff"),
    "control character": re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]"),
    "HTML entity": re.compile(r"&(?:lt|gt|amp|quot|nbsp|#39|#x27);"),
    "escaped line breaks": re.compile(r"(?:[^\\]\\n[^\n]*){8}"),
}


class TextChecks:
    """The checks over the texts added so far; `markers` are what a template writes before the content of each role."""

    def __init__(self, markers: Mapping[str, str]) -> None:
        self.roles = {marker: role for role, marker in markers.items()}
        choices = "|".join(map(re.escape, sorted(self.roles, key=len, reverse=True)))
        self.pattern = re.compile(choices) if choices else None
        self.role_characters: dict[str, Counter[str]] = {}
        self.fence_tokens: dict[str, Counter[str]] = {}
        self.signs: dict[tuple[str, str], Finding] = {}
        self.num_texts: Counter[str] = Counter()

    def add(self, place: Place, text: str, num_tokens: int) -> None:
        """Looks at the text of one conversation."""
        self.num_texts[place.task] += 1
        roles = self.role_characters.setdefault(place.task, Counter())
        for role, num_characters in self.said(text):
            roles[role] += num_characters
        fences = self.fence_tokens.setdefault(place.task, Counter())
        if "```" in text or "~~~" in text:
            for match in FENCE.finditer(text):
                share = len(match[3]) / len(text)
                fences[match[2].lower() or NO_LANGUAGE] += round(num_tokens * share)
        for sign, pattern in SIGNS.items():
            if pattern.search(text):
                self.signs.setdefault((place.task, sign), Finding(place.task, sign)).add(place)

    def said(self, text: str) -> Iterator[tuple[str, int]]:
        """Role and number of characters of each turn; what comes before the first marker is the template's.

        Without a marker it is a document, if the markers are known.
        """
        done, role = 0, DOCUMENT if self.pattern and not self.pattern.search(text) else OTHER
        for match in self.pattern.finditer(text) if self.pattern else ():
            yield role, match.start() - done
            yield OTHER, len(match[0])
            done, role = match.end(), self.roles[match[0]]
        yield role, len(text) - done
