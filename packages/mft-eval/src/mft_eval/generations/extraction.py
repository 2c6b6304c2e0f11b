"""From a completion to a program: which of a model's text is code, and what of the prompt goes before it."""

import ast
import functools
import re
import textwrap
import warnings

_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})([^\n]*)$")
_TOP_LEVEL = re.compile(r"^[^\s#)\]}]", re.MULTILINE)
_MAX_CUTS = 50
_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>.*?</\1>\n*", re.DOTALL)
_FIRST_CODE = re.compile(r"^(?:import |from \S+ import |def |class |async def |@\w|[A-Za-z_]\w* *= *\S)", re.MULTILINE)
_IMPORTS = (ast.Import, ast.ImportFrom)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# One pattern for every name: compiling one for each costs more than looking for it.
_DEFINED = re.compile(r"^(?:(?:async[ \t]+)?def|class)[ \t]+(\w+)|^(\w+)[ \t]*(?::[^=\n]+)?=(?!=)", re.MULTILINE)
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)


def extract_program(completion: str, entry_point: str, prompt: str = "") -> str:
    """The program that `completion` answers with; without an `entry_point`, the whole program that it holds.

    `prompt` is the code that the model was shown, if any: it holds imports and helpers, then the start of
    `entry_point`. What the model only thought is dropped. A completion that continues the prompt's last line is cut
    where the model goes on to something else. Otherwise the code is the first fenced block that defines `entry_point`
    and parses, after the blocks before it that it needs; else the first block; else the text from its first line of
    code on. What is unfinished is cut at the last whole statement.
    """
    completion = drop_thinking(completion)
    if not entry_point:
        blocks = fenced_blocks(completion)
        return max(blocks, key=len) if blocks else _unfenced(completion)
    if defines(prompt, entry_point) and _starts_indented(completion):
        continued = prompt + cut_at_top_level(prompt, completion)
        if _parses(continued):
            return continued
    code = _code_in(completion, entry_point)
    if defines(code, entry_point):
        return _join(preamble_of(prompt, entry_point), cut_unfinished(code, entry_point))
    if not defines(prompt, entry_point):
        return code
    return cut_unfinished(prompt + cut_at_top_level(prompt, code), entry_point)


def extract_infill(completion: str, prefix: str) -> str:
    """The lines that fill the gap after `prefix`: the first fenced block, else the text.

    Lines without an indent, where the gap has one, get it. A raw completion that goes on into new top-level code is
    cut there.
    """
    completion = drop_thinking(completion)
    blocks = fenced_blocks(completion)
    code = (blocks[0] if blocks else completion).strip("\n")
    head = next((line for line in reversed(prefix.splitlines()) if line.strip()), "")
    indent = head[: len(head) - len(head.lstrip())]
    if head.rstrip().endswith(":"):
        indent += "    "
    if code and not code.startswith((" ", "\t")):
        code = textwrap.indent(textwrap.dedent(code), indent)
    return cut_at_top_level(prefix, code).rstrip("\n") + "\n"


def drop_thinking(completion: str) -> str:
    """`completion` without what stands in thinking tags, or before a closing one whose opening was in the prompt."""
    closed = _THOUGHT.sub("", completion)
    _, closing, answer = closed.rpartition("</think>")
    return answer if closing else closed


def cut_unfinished(code: str, entry_point: str) -> str:
    """`code`, or if it does not parse, the most of its lines that do and define `entry_point`; else `code`."""
    if _parses(code):
        return code
    lines = code.splitlines(keepends=True)
    for stop in range(len(lines) - 1, max(0, len(lines) - _MAX_CUTS), -1):
        kept = "".join(lines[:stop])
        if not defines(kept, entry_point):
            break
        if _parses(kept):
            return kept
    return code


def _code_in(completion: str, entry_point: str) -> str:
    """The code of an answer: a block with what it needs of the blocks before it, or the text itself."""
    blocks = [_dedent(block, entry_point) for block in fenced_blocks(completion)]
    if not blocks:
        return _unfenced(completion)
    defining = [block for block in blocks if defines(block, entry_point)]
    if not defining:
        return blocks[0]
    chosen = next((block for block in defining if _parses(block)), defining[0])
    return "".join(_needed(blocks[: blocks.index(chosen)], chosen, entry_point)) + chosen


def _needed(earlier: list[str], chosen: str, entry_point: str) -> list[str]:
    """Those of the earlier blocks that define, and do nothing but define, what `chosen` looks up."""
    if not _parses(chosen):
        return []
    used = {node.id for node in ast.walk(_tree(chosen)) if isinstance(node, ast.Name)}
    needed = []
    for block in earlier:
        if not _parses(block) or defines(block, entry_point):
            continue
        body = _tree(block).body
        given = {name.asname or name.name for node in body if isinstance(node, _IMPORTS) for name in node.names} | {
            node.name for node in body if isinstance(node, _DEFINITIONS)
        }
        if given & used and all(isinstance(node, (*_IMPORTS, *_DEFINITIONS)) for node in body):
            needed.append(block)
    return needed


def _unfenced(completion: str) -> str:
    """The text from its first line of code on, where the whole of it is no code."""
    if _parses(completion):
        return completion
    match = _FIRST_CODE.search(completion)
    return cut_prose(completion[match.start() :]) if match else completion


def cut_prose(text: str) -> str:
    """`text` up to its first line in column 0 that neither is code nor leaves what stands before it open."""
    starts = [match.start() for match in _TOP_LEVEL.finditer(text, 1)]
    for start in reversed([*starts[:_MAX_CUTS], len(text)]):
        if _parses(text[:start]):
            return text[:start]
    return text


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


def without_fences(text: str) -> str:
    """The lines of `text` that stand outside of fenced code blocks."""
    kept, fence = [], ""
    for line in text.split("\n"):
        match = _FENCE.match(line.rstrip("\r"))
        if not fence and match:
            fence = match[2]
        elif fence and match and match[2].startswith(fence) and not match[3].strip():
            fence = ""
        elif not fence:
            kept.append(line)
    return "\n".join(kept)


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
    for match in _DEFINED.finditer(code):
        if entry_point in (match[1], match[2]):
            return match.start()
    return None


def _starts_indented(text: str) -> bool:
    return text.lstrip("\r\n")[:1] in (" ", "\t") and bool(text.strip())


@functools.lru_cache(maxsize=64)
def _parses(code: str) -> bool:
    try:
        _tree(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _tree(code: str) -> ast.Module:
    with warnings.catch_warnings(action="ignore"):
        return ast.parse(code)


def _dedent(block: str, entry_point: str) -> str:
    """`block` without the indent that all of its lines have, where a whole function is indented."""
    dedented = textwrap.dedent(block)
    return dedented if defines(dedented, entry_point) else block


def _join(preamble: str, code: str) -> str:
    """`preamble` then `code`, with the `__future__` imports of `code` where Python wants them, at the top."""
    futures = "".join(_FUTURE.findall(code)) if preamble else ""
    return futures + preamble + (_FUTURE.sub("", code) if futures else code)
