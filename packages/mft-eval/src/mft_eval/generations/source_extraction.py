"""From a completion to a program in a language with braces: C++ or JavaScript."""

import re

from mft_eval.generations.extraction import drop_thinking, fenced_blocks

_HEAD = re.compile(r"^(?:#include|using |import |const \w+ = require).*$", re.MULTILINE)


def extract_source(completion: str, entry_point: str, prompt: str) -> str:
    """The program that `completion` answers with.

    A fenced block that has `entry_point` stands after the prompt's includes and imports that it lacks. One that has
    not, and a completion without a fence, go on where the prompt ends, up to the end of the function there. Without
    an `entry_point` the longest block is the whole program.
    """
    completion = drop_thinking(completion)
    blocks = fenced_blocks(completion)
    if not entry_point:
        return max(blocks, key=len) if blocks else completion
    chosen = next((block for block in blocks if re.search(rf"\b{re.escape(entry_point)}\b", block)), None)
    if chosen is not None:
        lacking = [line for line in _HEAD.findall(prompt) if line not in chosen]
        return "".join(f"{line}\n" for line in lacking) + chosen
    unfenced = completion.partition("```")[0]
    is_raw = not blocks or _closing_brace(prompt, unfenced) is not None
    continued = unfenced if is_raw else blocks[0]
    end = _closing_brace(prompt, continued)
    return prompt + (continued if end is None else f"{continued[:end]}\n")


def _closing_brace(prompt: str, completion: str) -> int | None:
    """Where in `completion` the brace ends that closes what `prompt` has left open, if one does."""
    depth = prompt.count("{") - prompt.count("}")
    for position, character in enumerate(completion):
        depth += (character == "{") - (character == "}")
        if character == "}" and depth <= 0:
            return position + 1
    return None
