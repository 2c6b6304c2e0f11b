"""The function of a reference that a problem is about."""

import ast

from mft_eval.problems.problem import Problem, PythonTest


def tested_function(problem: Problem) -> ast.FunctionDef | None:
    """The tested function of the reference; a tree of its own for each call."""
    if not isinstance(problem.test, PythonTest) or not problem.reference:
        return None
    found = [
        node
        for node in ast.parse(problem.reference).body
        if isinstance(node, ast.FunctionDef) and node.name == problem.entry_point
    ]
    return found[-1] if found else None
