"""Fill-in-the-middle problems: whole statements of a reference are hidden, and the problem's own test judges."""

import ast
import random
from dataclasses import replace

from mft_eval.problems.fields import user_message
from mft_eval.problems.problem import Problem
from mft_eval.problems.tested_function import tested_function

HOLE = "# <fill in here>"
_ASK = "Some lines of this Python function are missing. Answer with the missing lines only, in one fenced Python block."


def infilling_problem(problem: Problem) -> Problem | None:
    """The problem with some statements of its function's body hidden, or None where none can be.

    Which is drawn with the problem's id as the seed: of the spans without which the rest cannot work, if possible one
    that code follows.
    """
    function = _function(problem)
    spans = _spans(function) if function is not None else []
    if function is None or not spans:
        return None
    inner = [span for span in spans if span[1] < len(function.body)]
    first, stop = random.Random(problem.problem_id).choice(inner or spans)
    lines = problem.reference.splitlines(keepends=True)
    hidden = function.body[first:stop]
    start, end = hidden[0].lineno - 1, hidden[-1].end_lineno or len(lines)
    prefix, suffix = "".join(lines[:start]), "".join(lines[end:])
    shown = f"{prefix}{' ' * hidden[0].col_offset}{HOLE}\n{suffix}"
    return replace(
        problem,
        messages=user_message(f"{_ASK}\n\n```python\n{shown.strip()}\n```"),
        prompt_code=prefix,
        suffix_code=suffix,
    )


def _spans(function: ast.FunctionDef) -> list[tuple[int, int]]:
    """First and stop of the runs of statements that the function needs: they return its value, or bind a name that only
    they bind and that is looked up after them.
    """
    body = function.body
    first_of_all = 1 if _is_docstring(body[0]) else 0
    arguments = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    spans = []
    for first in range(first_of_all, len(body)):
        for stop in range(first + 1, len(body) + 1):
            elsewhere = [*body[first_of_all:first], *body[stop:]]
            only_here = _names(body[first:stop], ast.Store) - _names(elsewhere, ast.Store) - arguments
            is_needed = bool(only_here & _names(body[stop:], ast.Load))
            if is_needed or (stop == len(body) and _gives_value(body[-1])):
                spans.append((first, stop))
    return spans


def _names(statements: list[ast.stmt], context: type[ast.expr_context]) -> set[str]:
    return {
        node.id
        for statement in statements
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, context)
    }


def _gives_value(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Return | ast.Yield) and node.value for node in ast.walk(statement))


def hidden_lines(problem: Problem) -> str:
    """What is hidden in an infilling problem."""
    end = len(problem.reference) - len(problem.suffix_code or "")
    return problem.reference[len(problem.prompt_code) : end]


def _function(problem: Problem) -> ast.FunctionDef | None:
    function = tested_function(problem)
    # A body on the line of its head has no lines of its own.
    return function if function is not None and function.body[0].lineno > function.lineno else None


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
