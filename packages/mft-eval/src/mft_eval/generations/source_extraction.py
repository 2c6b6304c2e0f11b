"""From a completion to a program in a language with braces: C++, JavaScript, Java, Rust or Go."""

import re

from mft_eval.generations.extraction import drop_thinking, fenced_blocks

_HEAD = re.compile(r"^(?:#include|using |use |import |const \w+ = require).*$", re.MULTILINE)
_FIRST_CODE = re.compile(
    r"^(?:#|//|/\*|(?:using|use|import|package|template|typedef|struct|enum|class|public|static|const|let|var|fn|pub|func"
    r"|function)\b|(?=\S)[^\n;]*\{[ \t]*$)",
    re.MULTILINE,
)
_CONTROL = r"(?:if|else|for|while|switch|match|return|do|try|catch|case)\b"
_OPENED_CLASS = re.compile(r"^.*?\bclass\s+(\w+)[^{]*\{", re.MULTILINE)


def extract_source(completion: str, entry_point: str, prompt: str) -> str:
    """The program that `completion` answers with.

    A fenced block that has `entry_point` stands after the prompt's includes and imports that it lacks, and so does code
    without a fence that writes the function anew. Any other goes on where the prompt ends, up to the end of the
    function there. Without an `entry_point` the longest block is the whole program.
    """
    completion = drop_thinking(completion)
    blocks = fenced_blocks(completion)
    if not entry_point:
        return max(blocks, key=len) if blocks else completion
    chosen = next((block for block in blocks if re.search(rf"\b{re.escape(entry_point)}\b", block)), None)
    if chosen is None and not blocks:
        chosen = _written_anew(completion, entry_point, prompt)
    if chosen is not None:
        opened = _OPENED_CLASS.search(prompt)
        if opened and not re.search(rf"\bclass\s+{opened[1]}\b", chosen):
            # The method alone, of a class that the prompt opens.
            chosen = f"{opened[0].strip()}\n{chosen}}}\n"
        if prompt.lstrip().startswith(("package ", "import ")) and re.search(r"\bfunc\b", prompt):
            # Go: what a file imports follows from what it uses.
            return chosen
        lacking = [line for line in _HEAD.findall(prompt) if line not in chosen]
        return "".join(f"{line}\n" for line in lacking) + chosen
    unfenced = completion.partition("```")[0]
    is_raw = not blocks or _closing_brace(prompt, unfenced) is not None
    continued = unfenced if is_raw else blocks[0]
    end = _closing_brace(prompt, continued)
    if end is not None:
        return f"{prompt}{continued[:end]}\n"
    # A model that was stopped before the last braces, as MultiPL-E does, has written the rest; one that wrote nothing
    # is given no function without a body, which C++ takes for anything.
    return f"{prompt}{continued}\n{'}' * _depth(prompt + continued) if continued.strip() else ''}\n"


def _written_anew(completion: str, entry_point: str, prompt: str) -> str | None:
    """The code of an answer without a fence that begins with the function's head again, or None for one that goes on.

    The head, or in Java its class, then stands in column 0, where the body that the prompt has opened has no line.
    """
    opened = _OPENED_CLASS.search(prompt)
    name = rf"class\s+{opened[1]}" if opened else re.escape(entry_point)
    head = re.search(
        rf"^(?=\S)(?!{_CONTROL})[^\n;{{]*\b{name}\b(?:(?!\n\s*\n)[^;{{])*(?:\{{|=>)", completion, re.MULTILINE
    )
    end = _closing_brace(prompt, completion)
    if head is None or (end is not None and end <= head.start()):
        return None
    first = _FIRST_CODE.search(completion)
    # A line of words may stand right above the head.
    start = first.start() if first and first.start() < head.end() else head.start()
    stop = completion.rfind("}") + 1
    closes = re.match(r"[ \t)]*;", completion[stop:])
    return completion[start : stop + (closes.end() if closes else 0)] + "\n"


def _depth(code: str) -> int:
    return code.count("{") - code.count("}")


def _closing_brace(prompt: str, completion: str) -> int | None:
    """Where in `completion` the brace ends that closes what `prompt` has left open, if one does."""
    depth = _depth(prompt)
    for position, character in enumerate(completion):
        depth += (character == "{") - (character == "}")
        if character == "}" and depth <= 0:
            return position + 1
    return None
