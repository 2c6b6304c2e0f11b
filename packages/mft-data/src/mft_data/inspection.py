"""Shows one row of a dataset as a person reads it: segments, supervised text, special tokens."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from mft_data.dataset_dir import read_manifest
from mft_data.errors import DataError
from mft_data.mds import read_row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokenizers import Tokenizer


def load_row(dataset_dir: Path, task_name: str, split: str, row: int) -> list[dict[str, Any]]:
    """The segments of one row, each with `input_ids`, `loss_mask` and `pieces`; raises DataError.

    A piece is a run of tokens alike: `text`, `is_supervised`, and `special_id`, the id if it is one special token.
    """
    from tokenizers import Tokenizer

    manifest = read_manifest(dataset_dir)
    tasks = {task["name"]: task for task in manifest["tasks"]}
    if task_name not in tasks:
        raise DataError(f'there is no task "{task_name}"', where=str(dataset_dir), fix=f"use one of {', '.join(tasks)}")
    num_rows = tasks[task_name]["splits"][split]["rows"]
    if row >= num_rows:
        raise DataError(f'task "{task_name}" has {num_rows} {split} rows', fix="rows count from 0")
    sample = read_row(dataset_dir / split / task_name, row)
    tokenizer_path = dataset_dir / "tokenizer" / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_path))
    # The tokenizers library raises a bare Exception for whatever is wrong with the file.
    except Exception as error:
        raise DataError(f"the tokenizer cannot be read ({error})", where=str(tokenizer_path)) from error
    borders = np.cumsum(sample["segment_lengths"])[:-1]
    segments = zip(np.split(sample["input_ids"], borders), np.split(sample["loss_mask"], borders), strict=True)
    return [
        {
            "input_ids": input_ids.tolist(),
            "loss_mask": loss_mask.tolist(),
            "pieces": list(pieces(tokenizer, input_ids.tolist(), loss_mask.tolist())),
        }
        for input_ids, loss_mask in segments
    ]


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


def format_row(segments: list[dict[str, Any]]) -> str:
    """The row for reading: supervised text in ⟦ ⟧ and green, special tokens as ⟨text id⟩ and bold."""
    lines = []
    for number, segment in enumerate(segments, start=1):
        tokens, supervised = len(segment["input_ids"]), sum(segment["loss_mask"])
        lines.append(
            click.style(
                f"── segment {number} of {len(segments)}: {tokens} tokens, {supervised} supervised ──", dim=True
            )
        )
        text = ""
        for is_supervised, run in groupby(segment["pieces"], lambda piece: piece["is_supervised"]):
            styled = "".join(format_piece(piece) for piece in run)
            text += click.style("⟦", fg="green") + styled + click.style("⟧", fg="green") if is_supervised else styled
        lines.append(text)
    return "\n".join(lines)


# Control characters that a terminal would obey are shown as their pictures.
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


def format_piece(piece: dict[str, Any]) -> str:
    """A piece in its style."""
    colour = "green" if piece["is_supervised"] else None
    text = piece["text"].translate(CONTROL_PICTURES)
    if piece["special_id"] is not None:
        return click.style(f"⟨{text} {piece['special_id']}⟩", fg=colour, bold=True)
    return click.style(text, fg=colour)
