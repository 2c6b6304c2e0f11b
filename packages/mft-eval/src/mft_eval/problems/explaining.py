"""Explanations of code: one model's words about a function, from which the function is to be written again."""

import ast
from dataclasses import replace

from mft_eval.generations.extraction import drop_thinking, without_fences
from mft_eval.problems.fields import user_message
from mft_eval.problems.problem import Problem, PythonTest
from mft_eval.problems.tested_function import tested_function

_EXPLAIN = (
    "Explain what this Python function does, so that it can be written anew from your words alone. "
    "Answer in words, without code, in at most {} characters."
)
_WRITE = "Write this Python function as its docstring says. Answer with the whole function in one fenced Python block."
_LEAST_COPIED = 10


def explaining_problem(problem: Problem) -> Problem | None:
    """The problem that asks for an explanation of the reference, or None where its function has no docstring."""
    function = tested_function(problem)
    words = ast.get_docstring(function) if function is not None else None
    if function is None or not words:
        return None
    function.body = function.body[1:] or [ast.Pass()]
    ask = user_message(f"{_EXPLAIN.format(len(words))}\n\n```python\n{ast.unparse(function)}\n```")
    return replace(problem, messages=ask, prompt_code="", docstring=words)


def regenerating_problem(problem: Problem, explanation: str) -> Problem | None:
    """The problem that asks for the function of `explanation`, or None where its function has no docstring.

    As in HumanEvalExplain the explanation may be no longer than the docstring, and must not hand on the code: fenced
    blocks and copied lines are dropped before it is cut.
    Source: N. Muennighoff et al., OctoPack: Instruction Tuning Code Large Language Models, 2023.
    """
    made = explaining_problem(problem)
    function = tested_function(problem)
    if made is None or function is None or not isinstance(problem.test, PythonTest):
        return None
    words_alone = {line.strip() for line in made.docstring.splitlines()}
    copied = {
        line.strip() for line in problem.reference.splitlines() if len(line.strip()) >= _LEAST_COPIED
    } - words_alone
    lines = without_fences(drop_thinking(explanation)).strip().splitlines()
    words = "\n".join(line for line in lines if line.strip() not in copied)[: len(made.docstring)].strip()
    function.body = [ast.Expr(ast.Constant(words))]
    prompt = f"{problem.test.preamble}{ast.unparse(function)}\n"
    return replace(
        made,
        messages=user_message(f"{_WRITE}\n\n```python\n{prompt.strip()}\n```"),
        prompt_code=prompt,
        explanation=words,
    )
