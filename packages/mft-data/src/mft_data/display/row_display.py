"""Encoded conversations as a person reads them: supervised text, special tokens, what a terminal must not obey."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from tokenizers import Tokenizer

# Characters that a terminal would obey, or that turn the direction of text, are shown instead.
CONTROL_PICTURES: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
CONTROL_PICTURES |= {0x7F: 0x2421} | {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
CONTROL_PICTURES |= {code: f"\\u{code:04x}" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F))}
CONTROL_PICTURES |= {code: f"\\u{code:04x}" for code in range(0x2066, 0x206A)}


def readable_segment(tokenizer: Tokenizer, input_ids: np.ndarray, loss_mask: np.ndarray) -> dict[str, Any]:
    """`input_ids` and `loss_mask` of a conversation as lists, and its `pieces`.

    A piece is a run of tokens alike: `text`, `is_supervised`, and `special_id`, the id if it is one special token.
    """
    ids, mask = input_ids.tolist(), loss_mask.tolist()
    return {"input_ids": ids, "loss_mask": mask, "pieces": list(pieces(tokenizer, ids, mask))}


def pieces(tokenizer: Tokenizer, input_ids: list[int], loss_mask: list[int]) -> Iterator[dict[str, Any]]:
    """The runs of a segment: special tokens alone, others as long as they are all supervised or all not."""
    special_ids = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def kind(position: int) -> tuple[int, int]:
        is_special = input_ids[position] in special_ids
        return loss_mask[position], position if is_special else -1

    shown = 0
    for (is_supervised, special_position), run in groupby(range(len(input_ids)), kind):
        end = list(run)[-1] + 1
        # Decoding from the start keeps what a decoder does to the first token out of later runs.
        text = tokenizer.decode(input_ids[:end], skip_special_tokens=False)
        special_id = input_ids[special_position] if special_position >= 0 else None
        yield {"text": text[shown:], "is_supervised": bool(is_supervised), "special_id": special_id}
        shown = len(text)


def format_segment(heading: str, segment: dict[str, Any]) -> str:
    """A conversation under its heading: supervised text in ⟦ ⟧ and green, special tokens as ⟨text id⟩ and bold."""
    text = ""
    for is_supervised, run in groupby(segment["pieces"], lambda piece: piece["is_supervised"]):
        styled = "".join(format_piece(piece) for piece in run)
        text += click.style("⟦", fg="green") + styled + click.style("⟧", fg="green") if is_supervised else styled
    return f"{click.style(f'── {heading} ──', dim=True)}\n{text}"


def format_piece(piece: dict[str, Any]) -> str:
    """A piece in its style."""
    colour = "green" if piece["is_supervised"] else None
    text = piece["text"].translate(CONTROL_PICTURES)
    if piece["special_id"] is not None:
        return click.style(f"⟨{text} {piece['special_id']}⟩", fg=colour, bold=True)
    return click.style(text, fg=colour)
