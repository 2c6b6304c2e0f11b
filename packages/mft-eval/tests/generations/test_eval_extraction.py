import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_eval.generations.extraction import cut_at_top_level, defines, extract_program, fenced_blocks, preamble_of

PROMPT = '''from typing import List


def helper(x):
    return x + 1


def f(xs: List[int]) -> int:
    """ Sum.
    >>> f([1])
    """
'''
PREAMBLE = PROMPT[: PROMPT.index("def f(")]
BODY = "    total = 0\n    for x in xs:\n        total += x\n    return total\n"
WHOLE = f"def f(xs):\n{BODY}"


def test_a_continuation_follows_the_prompt():
    assert extract_program(BODY, "f", PROMPT) == PROMPT + BODY


@pytest.mark.parametrize(
    "ramble",
    [
        "\n\ndef g():\n    pass\n",
        "\nprint(f([1]))\n",
        "\n```\nThis works because\n",
        "\nclass A: pass",
        "\nif __name__ == '__main__':\n    f()",
        "\n@cache\ndef f(xs): return 3\n",
        "\nThe function above doesn't",
        "\n```python\ndef f(xs): return 3\n```",
    ],
)
def test_a_continuation_ends_where_the_model_rambles_on(ramble):
    program = extract_program(BODY + ramble, "f", PROMPT)
    assert program.rstrip() == (PROMPT + BODY).rstrip()


def test_column_zero_inside_a_string_or_bracket_or_comment_is_no_end():
    body = '    text = """\nword\n"""\n    rows = [\n1,\n]\n# note\n    return len(text)\n'
    assert extract_program(body + "print(1)\n", "f", PROMPT) == PROMPT + body


def test_a_continuation_that_never_parses_is_cut_at_the_first_column_zero_line():
    assert cut_at_top_level(PROMPT, "    return (\nprint(1)\n") == "    return (\n"


def test_the_block_that_defines_the_entry_point_is_taken_after_the_preamble():
    text = f"First:\n```\npip install x\n```\nThen\n```python\n{WHOLE}```\nand\n```python\nf([1])\n```\n"
    assert extract_program(text, "f", PROMPT) == PREAMBLE + WHOLE
    assert extract_program(text, "f") == WHOLE


def test_an_answer_that_starts_with_a_space_is_still_read_for_its_block():
    assert extract_program(f" Here it is:\n```python\n{WHOLE}```", "f", PROMPT) == PREAMBLE + WHOLE


def test_a_block_cut_off_by_the_token_limit_is_taken():
    assert extract_program(f"Sure:\n```python\n{WHOLE}", "f", PROMPT) == f"{PREAMBLE}{WHOLE}\n"


def test_without_the_entry_point_the_first_block_is_taken():
    assert extract_program("```\na = 1\n```\n```\nb = 2\n```", "f") == "a = 1\n"


def test_a_block_that_holds_only_the_body_continues_the_prompt():
    assert extract_program(f"```python\n{BODY}```", "f", PROMPT) == PROMPT + BODY


def test_raw_text_is_taken_without_a_block():
    assert extract_program(WHOLE, "f", PROMPT) == PREAMBLE + WHOLE
    assert extract_program("no code", "f") == "no code"
    assert extract_program("no code", "f", "Write f in Python.") == "no code"


def test_future_imports_go_to_the_top():
    code = f"from __future__ import annotations\n{WHOLE}"
    program = extract_program(f"```python\n{code}```", "f", PROMPT)
    assert program == f"from __future__ import annotations\n{PREAMBLE}{WHOLE}"
    compile(program, "program", "exec")


def test_a_fence_inside_a_list_gives_its_lines_unindented():
    text = f"1. Code:\n\n   ```python\n{''.join('   ' + line for line in WHOLE.splitlines(keepends=True))}   ```\n"
    assert fenced_blocks(text) == [WHOLE]


def test_inline_code_opens_no_block():
    assert fenced_blocks("```f```\ntext\n~~~\ncode\n~~~~\n") == ["code\n"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(x): ...", True),
        ("async def f(): ...", True),
        ("class f: ...", True),
        ("f = lambda x: x", True),
        ("f: Callable = len", True),
        ("f == 1", False),
        ("def ff(): ...", False),
        ("    def f(): ...", False),
        ("text (\ndef f(", True),
    ],
)
def test_defines(code, expected):
    assert defines(code, "f") is expected


def test_preamble_is_what_stands_before_the_definition():
    assert preamble_of(PROMPT, "f") == PREAMBLE
    assert preamble_of("plain words", "f") == ""


@given(st.text(), st.sampled_from(["", PROMPT, "Write f."]))
def test_any_text_gives_a_program_built_from_it(completion, prompt):
    program = extract_program(completion, "f", prompt)
    assert program == extract_program(completion, "f", prompt)
    assert set(program) <= set(completion + prompt + "\n")


@given(st.lists(st.from_regex(r"[a-z =()0-9]*", fullmatch=True), max_size=5))
def test_every_fenced_block_is_found(blocks):
    text = "".join(f"words\n```python\n{block}\n```\n" for block in blocks)
    assert fenced_blocks(text) == [block + "\n" for block in blocks]


@given(st.text())
def test_a_cut_is_a_prefix(completion):
    assert completion.startswith(cut_at_top_level(PROMPT, completion))
