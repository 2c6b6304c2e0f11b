"""A corpus of answers as models write them: each has to come out as a program that works."""

import ast

import pytest

from mft_eval.generations.extraction import extract_program
from mft_eval.generations.source_extraction import extract_source

PROMPT = '''import math
from typing import List


def twice(x):
    return x + x


def f(xs: List[int]) -> float:
    """ The root of twice the sum.
    >>> f([1, 1])
    2.0
    """
'''
BODY = "    total = 0\n    for x in xs:\n        total += x\n    return math.sqrt(twice(total))\n"
WHOLE = f"def f(xs: List[int]) -> float:\n{BODY}"
FENCED = f"```python\n{WHOLE}```"
# Answers to PROMPT, each right.
ANSWERS = {
    "a raw continuation": BODY,
    "a continuation after a newline": f"\n{BODY}",
    "a continuation and another function": f"{BODY}\n\ndef g():\n    return 1\n",
    "a continuation and a test of its own": f"{BODY}\n\nassert f([2]) == 3\n",
    "a continuation and unfinished text": f"{BODY}\n\ndef g(x):\n    return (x +",
    "a continuation and a fence": f"{BODY}```\n",
    "a continuation and prose": f"{BODY}\nThe function doesn't need more.",
    "a fenced block": FENCED,
    "a block without a language": FENCED.replace("python", ""),
    "a block of tildes": FENCED.replace("```", "~~~"),
    "a block of four backticks": FENCED.replace("```", "````"),
    "a block without an end": FENCED.removesuffix("```"),
    "prose around a block": f"Sure! Here it is:\n\n{FENCED}\n\nIt sums `xs` first. It's O(n).",
    "Windows line ends": FENCED.replace("\n", "\r\n"),
    "an install command first": f"```bash\npip install numpy\n```\n{FENCED}",
    "an example after": f"{FENCED}\nUse it:\n```python\nprint(f([1, 2, 3]))\n```",
    "the signature repeated": f"{WHOLE}",
    "the whole prompt repeated": f"```python\n{PROMPT}{BODY}```",
    "the whole prompt repeated raw": f"{PROMPT}{BODY}",
    "a body alone in a block": f"```python\n{BODY}```",
    "an indented block": "1. So:\n\n" + "".join(f"   {line}\n" for line in FENCED.splitlines()),
    "indented code in a block": "```python\n" + "".join(f"    {line}\n" for line in WHOLE.splitlines()) + "```",
    "prose without a fence": f"Here is the function:\n\n{WHOLE}\nI hope that helps you.",
    "prose with an apostrophe": f"Here's one that doesn't loop:\n\n{WHOLE}\nThat's all.",
    "thinking before": f"<think>\nMaybe ```python\ndef f(xs): return 0\n``` no.\n</think>\n\n{FENCED}",
    "thinking whose start was in the prompt": f"I try ```python\ndef f(xs): return 0\n```\n</think>\n{FENCED}",
    "thinking and a continuation": f"<thinking>hm</thinking>\n{BODY}",
    "a draft that does not parse first": f"```python\ndef f(xs):\n    return (\n```\nBetter:\n{FENCED}",
    "a helper in a block of its own": "```python\ndef root(x):\n    return x ** 0.5\n```\nThen:\n```python\n"
    "def f(xs):\n    return root(twice(sum(xs)))\n```",
    "an import in a block of its own": "```python\nfrom math import sqrt as root\n```\n```python\n"
    "def f(xs):\n    return root(twice(sum(xs)))\n```",
    "a future import": f"```python\nfrom __future__ import annotations\n{WHOLE}```",
    "a lambda": "```python\nf = lambda xs: math.sqrt(twice(sum(xs)))\n```",
    "cut off in the next function": f"```python\n{WHOLE}\n\ndef g(x):\n    return [y for y in",
    "cut off after the whole function": f"```python\n{WHOLE}\nprint(f([1,",
    "a decorator": f"```python\nfrom functools import cache\n\n\ndef same(g):\n    return g\n\n\n@same\n{WHOLE}```",
    "strings with code in them": f'```python\n{WHOLE}\nTEXT = """\ndef f(xs): return 0\n"""\n```',
    "a main guard": f"```python\n{WHOLE}\nif __name__ == '__main__':\n    print(f([int(input())]))\n```",
    "inline code before": f"Call `f(xs)` or ```f```.\n{FENCED}",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_right_answer_comes_out_right_from(name):
    program = extract_program(ANSWERS[name], "f", PROMPT)
    namespace = {"__name__": "program"}
    exec(compile(program, "<program>", "exec"), namespace)
    assert namespace["f"]([3, 5]) == 4.0


@pytest.mark.parametrize(
    "answer", ["", "I cannot.", "```python\n```", "<think>never ends", "\0", "```python\ng = 1\n```"]
)
def test_no_answer_is_no_right_program(answer):
    program = extract_program(answer, "f", PROMPT)
    namespace = {"__name__": "program"}
    try:
        exec(compile(program, "<program>", "exec"), namespace)
        assert namespace["f"]([3, 5]) != 4.0
    except (SyntaxError, ValueError, KeyError):
        return


@pytest.mark.parametrize(
    "answer",
    [
        "print(input())\n",
        "```python\nprint(input())\n```",
        "Text:\n```\nprint(input())\n```\nand `x`.",
        "<think>a</think>print(input())\n",
    ],
)
def test_a_whole_program_needs_no_function(answer):
    assert ast.dump(ast.parse(extract_program(answer, ""))) == ast.dump(ast.parse("print(input())\n"))


CPP = "#include <vector>\nusing namespace std;\n// Doubles.\nint f(int x) {\n"


@pytest.mark.parametrize(
    "answer",
    [
        "    if (x) { return 2 * x; }\n    return 0;\n}\n",
        "    if (x) { return 2 * x; }\n    return 0;\n}\n\nint main() { return 1; }\n",
        "    if (x) { return 2 * x; }\n    return 0;\n}\n```\nThat is all.",
        "```cpp\n    if (x) { return 2 * x; }\n    return 0;\n}\n```",
        "So:\n```cpp\nint f(int x) {\n    if (x) { return 2 * x; }\n    return 0;\n}\n```\n",
        "int f(int x) {\n    if (x) { return 2 * x; }\n    return 0;\n}\n",
        "So:\n\n#include <vector>\nint f(int x) {\n    if (x) { return 2 * x; }\n    return 0;\n}\n\nThat is all.",
        "    if (x) { return 2 * x; }\n    return 0;\n}\n\nint f(int x) {\n    return 1;\n}\n",
        "<think>int f</think>```\n#include <vector>\nint f(int x) {\n    if (x) { return 2 * x; }\n"
        "    return 0;\n}\n```\n",
    ],
)
def test_source_with_braces_is_whole(answer):
    program = extract_source(answer, "f", CPP)
    code = program.replace(CPP, "").replace("#include <vector>\n", "").replace("using namespace std;\n", "")
    assert code.replace("int f(int x) {\n", "") == "    if (x) { return 2 * x; }\n    return 0;\n}\n"
    assert program.count("#include <vector>") == 1


# Prompt -> the whole of it written again, with what it lacks.
PROMPTS = {
    "const f = (x) => {\n": "const f = (x) => {\n  return 2 * x;\n}\n",
    "/* f doubles. */\nconst f = (x) => {\n": (
        "const f = (x) => {\n  return [1].map((y) => {\n    return f(y);\n  });\n};\n"
    ),
    "class S {\n    public static int f(int x) {\n": (
        "class S {\n    public static int f(int x) {\n        return 2;\n    }\n}\n"
    ),
    "fn f(x: i32) -> i32 {\n": "fn g(x: i32) -> i32 {\n    x\n}\n\nfn f(x: i32) -> i32 {\n    2 * g(x)\n}\n",
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_head_that_is_written_again_without_a_fence_is_not_nested(prompt):
    answer = PROMPTS[prompt]
    assert extract_source(answer, "f", prompt) == answer
    assert extract_source(f"Sure, f is easy:\n\n{answer}\nThat is all.", "f", prompt) == answer
    assert extract_source(f"Sure, f is easy:\n{answer}", "f", prompt) == answer


def test_a_body_without_indents_goes_on_from_the_prompt():
    body = "if (f(x - 1)) {\nreturn 1;\n}\nreturn 0;\n}\n"
    assert extract_source(body, "f", CPP) == CPP + body
