"""A JSON array of records as lines of JSON, read a block at a time."""

from __future__ import annotations

import codecs
import json
import re
from typing import TYPE_CHECKING, Any

from mft_data.errors import DataError, plural

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK_BYTES = 1 << 20
SPACE = re.compile(r"[ \t\r\n]*")
LINE_BREAKS = str.maketrans("\r\n", "  ")
# How far from the end of what was read an error may mean that the rest is still to come: a literal or an escape.
LONGEST_LITERAL = 16
AFTER_LITERALS = tuple(" \t\r\n,]")


def begins_with_array(path: Path) -> bool:
    """Whether the first character of a file opens a JSON array."""
    with path.open("rb") as raw:
        return raw.read(1 << 12).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def array_lines(path: Path, raw: Any) -> Iterator[bytes]:
    """Each element of an open file's array as a line; of a file that begins with an object, its own lines.

    Line breaks between the parts of an element become spaces. Memory holds a few blocks, or the longest element
    twice. Raises DataError.
    """
    first = raw.read(BLOCK_BYTES).removeprefix(codecs.BOM_UTF8)
    if not first.lstrip().startswith(b"["):
        yield from plain_lines(first, raw)
        return
    number = 0
    try:
        for element in array_elements(first, raw):
            number += 1
            yield element.translate(LINE_BREAKS).encode() + b"\n"
    except UnicodeDecodeError as error:
        what = f"the file is not UTF-8 ({error.reason}) after {number} {plural(number, 'record')}"
        raise DataError(what, where=str(path)) from error
    except ValueError as error:
        what = f"the array is not JSON after {number} {plural(number, 'record')} ({getattr(error, 'msg', error)})"
        raise DataError(what, where=str(path)) from error


def plain_lines(first: bytes, raw: Any) -> Iterator[bytes]:
    """The lines of a file of which `first` was read."""
    rest, block = b"", first
    while block:
        *lines, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in lines)
        block = raw.read(BLOCK_BYTES)
    if rest:
        yield rest


def array_elements(first: bytes, raw: Any) -> Iterator[str]:
    """The text of each element of an array; raises ValueError if it is none, or UnicodeDecodeError."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    scan = json.JSONDecoder().raw_decode
    text, position = decode(first).lstrip()[1:], 0
    is_whole = False
    wanted = "element or end"
    while True:
        space = SPACE.match(text, position)
        position = space.end() if space else position
        found = text[position : position + 1]
        if found == "]" and wanted != "element":
            if text[position + 1 :].strip() or raw.read(1):
                raise ValueError("something follows it")
            return
        if found == "," and wanted == "comma or end":
            position, wanted = position + 1, "element"
            continue
        if found and wanted == "comma or end":
            raise ValueError("a comma is missing")
        if found:
            try:
                _, end = scan(text, position)
                # A number or a literal may go on.
                if is_whole or found in '{["' or text[end : end + 1] in AFTER_LITERALS:
                    yield text[position:end]
                    position, wanted = end, "comma or end"
                    continue
            except json.JSONDecodeError as error:
                may_go_on = error.pos >= len(text) - LONGEST_LITERAL or error.msg.startswith("Unterminated string")
                if is_whole or not may_go_on:
                    raise
        if is_whole:
            raise ValueError("it has no end")
        # As much again as an element has so far: no element is scanned more than a few times over.
        block = raw.read(max(BLOCK_BYTES, len(text) - position))
        is_whole = not block
        text, position = text[position:] + decode(block, final=is_whole), 0
