"""Fill-in-the-middle: a document cut in three, put in the order that a model of its tokenizer's family fills in.

Source: Bavarian et al., arXiv:2207.14255: PSM is prefix, suffix, middle; SPM, in the variant that shares its sentinels
with PSM, begins with the suffix.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from mft_data.encoding.template import Stretch
from mft_data.errors import DataError, RecordError, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mft_data.reading.conversation import Conversation

# Prefix, suffix and middle sentinel of each family, and what ends the middle: None is EOS.
FAMILIES: dict[str, tuple[str, str, str, str | None]] = {
    "starcoder": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>"),
    "codellama": ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
    "qwen": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>"),
    "deepseek": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", None),  # noqa: RUF001 - the tokens' own bars
}
LEAST_CHARACTERS = 3


class Pieces(NamedTuple):
    """A document cut in three; put together in this order they are the document."""

    prefix: str
    middle: str
    suffix: str


@dataclass(frozen=True, slots=True)
class FimRenderer:
    """What makes the stretches of a document; sentinels and stop are as a tokenizer has to be given them."""

    prefix: str
    suffix: str
    middle: str
    stop: str
    reserved: tuple[str, ...]  # sentinels that a text could write
    spm_share: float
    spans: str

    def stretches(self, conversation: Conversation) -> list[Stretch]:
        """The prompt of a document, and its middle with the stop token, which is supervised; raises RecordError."""
        if conversation[0].role != "text":
            raise RecordError("only text records can be cut for filling in", fix="read a field as text: `fields:`")
        text = conversation[0].content
        if found := next((sentinel for sentinel in self.reserved if sentinel in text), None):
            raise RecordError(f'the text holds "{found}", which this tokenizer makes a sentinel of')
        random = Random(hashlib.blake2b(text.encode()).digest())
        is_spm = random.random() < self.spm_share
        pieces = SPANS[self.spans](text, random)
        if is_spm:
            prompt = f"{self.prefix}{self.suffix}{pieces.suffix}{self.middle}{pieces.prefix}"
        else:
            prompt = f"{self.prefix}{pieces.prefix}{self.suffix}{pieces.suffix}{self.middle}"
        return [Stretch(prompt, is_supervised=False), Stretch(pieces.middle + self.stop, is_supervised=True)]


def fim_renderer(
    settings: Mapping[str, Any], names: Mapping[str, str], token_id: Callable[[str], int | None], eos: str
) -> FimRenderer:
    """The renderer of a task's `fim` settings; raises DataError if the tokenizer lacks a sentinel.

    `names` are what to write for special tokens, `token_id` tells the id of what is written.
    """
    known = {name: tokens for name, tokens in FAMILIES.items() if has_tokens(tokens, names, token_id)}
    choice = settings.get("sentinels", "auto")
    if choice == "auto":
        if len(known) != 1:
            found = f"those of {' and '.join(known)}" if known else "no family's"
            what = f"the tokenizer has {found} sentinels for filling in"
            raise DataError(what, fix="give `sentinels: [PREFIX, SUFFIX, MIDDLE]` under `fim:`")
        (tokens,) = known.values()
    else:
        tokens = FAMILIES[choice] if isinstance(choice, str) else (*choice, None)
        if not has_tokens(tokens, names, token_id):
            what = f"the tokenizer has not all of the sentinels {', '.join(filter(None, tokens))}"
            raise DataError(what, fix="choose others with `sentinels:` under `fim:`")
    *sentinels, stop = tokens
    return FimRenderer(
        *(names.get(token, token) for token in sentinels),
        stop=names.get(stop or eos, stop or eos),
        reserved=tuple(token for token in (*sentinels, stop or eos) if token not in names),
        spm_share=settings.get("spm", 0.5),
        spans=settings.get("spans", "characters"),
    )


def has_tokens(tokens: tuple[str | None, ...], names: Mapping[str, str], token_id: Callable[[str], int | None]) -> bool:
    """Whether all of these are tokens."""
    return all(token is None or token_id(names.get(token, token)) is not None for token in tokens)


def character_span(text: str, random: Random) -> Pieces:
    """A document cut at two places, all pairs of them being as likely; raises RecordError if it is too short."""
    if len(text) < LEAST_CHARACTERS:
        raise RecordError(f"the text has {len(text)} {plural(len(text), 'character')}, too few to cut in three")
    start, end = sorted(random.sample(range(len(text) + 1), 2))
    return Pieces(text[:start], text[start:end], text[end:])


def syntax_span(text: str, random: Random) -> Pieces:
    """Python code without one statement or expression of its, all being as likely; raises RecordError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = f"the text is no Python code ({type(error).__name__})"
        raise RecordError(what, fix="give `spans: characters` under `fim:`") from error
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.expr) and node.end_lineno]
    # Inside an f-string some Pythons do not tell where things are.
    inner = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in ast.walk(node)} - {
        id(node) for node in nodes if isinstance(node, ast.JoinedStr)
    }
    nodes = [node for node in nodes if id(node) not in inner]
    if not nodes:
        raise RecordError("the code has no statement to fill in")
    node = random.choice(nodes)
    lines = re.findall(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text.encode())
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    start = starts[node.lineno - 1] + node.col_offset
    end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
    content = text.encode()
    return Pieces(content[:start].decode(), content[start:end].decode(), content[end:].decode())


SPANS: dict[str, Callable[[str, Random], Pieces]] = {"characters": character_span, "syntax": syntax_span}
