"""From a completion to a program: which of a model's text is code, and what of the prompt goes before it."""

import ast
import re
import warnings

_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})([^\n]*)$")
_TOP_LEVEL = re.compile(r"^[^\s#)\]}]", re.MULTILINE)
_MAX_CUTS = 50
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)


def extract_program(completion: str, entry_point: str, prompt: str = "") -> str:
    """The program that `completion` answers with.

    `prompt` is the code that the model was shown, if any: it holds imports and helpers, then the start of
    `entry_point`. A completion that continues its last line is cut where the model goes on to something else. Otherwise
    the code is the first fenced block that defines `entry_point`, else the first fenced block, else the whole text.
    """
    if defines(prompt, entry_point) and _starts_indented(completion):
        continued = prompt + cut_at_top_level(prompt, completion)
        if _parses(continued):
            return continued
    blocks = fenced_blocks(completion)
    code = next((block for block in blocks if defines(block, entry_point)), blocks[0] if blocks else completion)
    if defines(code, entry_point):
        return _join(preamble_of(prompt, entry_point), code)
    return prompt + cut_at_top_level(prompt, code) if defines(prompt, entry_point) else code


def defines(code: str, entry_point: str) -> bool:
    """Whether a line of `code` defines `entry_point` at top level; holds for code that does not parse too."""
    return _definition_start(code, entry_point) is not None


def preamble_of(prompt: str, entry_point: str) -> str:
    """What stands in `prompt` before the definition of `entry_point`: imports and helper functions."""
    start = _definition_start(prompt, entry_point)
    return prompt[:start] if start is not None else ""


def fenced_blocks(text: str) -> list[str]:
    """The contents of Markdown's fenced code blocks in order; the last may lack its closing fence."""
    blocks: list[str] = []
    fence, indent, lines = "", "", []
    for line in text.split("\n"):
        match = _FENCE.match(line.rstrip("\r"))
        if not fence:
            # An opening fence of backticks has no backtick after them; inline code has.
            if match and not (match[2][0] == "`" and "`" in match[3]):
                indent, fence, lines = match[1], match[2], []
        elif match and match[2].startswith(fence) and not match[3].strip():
            blocks.append("".join(lines))
            fence = ""
        else:
            # A fence inside a list is indented, and its lines with it.
            lines.append(line.removeprefix(indent) + "\n")
    if fence:
        blocks.append("".join(lines))
    return blocks


def cut_at_top_level(prompt: str, completion: str) -> str:
    """`completion` up to its first line that starts a new top-level statement after `prompt`.

    A line in column 0 inside a string or a bracket is no such line, which shows in that the text before it does not
    parse; where that is so for all that are tried, it is the first line in column 0. Comments in column 0 stay.
    """
    starts = [match.start() for match in _TOP_LEVEL.finditer(completion, 1)]
    if not starts:
        return completion
    # Each try parses the whole text, so that their number has to be bounded.
    return completion[: next((s for s in starts[:_MAX_CUTS] if _parses(prompt + completion[:s])), starts[0])]


def _definition_start(code: str, entry_point: str) -> int | None:
    name = re.escape(entry_point)
    match = re.search(
        rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]+)?=(?!=)", code, re.MULTILINE
    )
    return match.start() if match else None


def _starts_indented(text: str) -> bool:
    return text.lstrip("\r\n")[:1] in (" ", "\t") and bool(text.strip())


def _parses(code: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _join(preamble: str, code: str) -> str:
    """`preamble` then `code`, with the `__future__` imports of `code` where Python wants them, at the top."""
    futures = "".join(_FUTURE.findall(code)) if preamble else ""
    return futures + preamble + (_FUTURE.sub("", code) if futures else code)
