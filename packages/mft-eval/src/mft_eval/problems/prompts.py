"""The prompts that a problem is given to a model as."""

from collections.abc import Callable
from typing import Any

from mft_eval.errors import EvalError
from mft_eval.problems.problem import Problem


def chat_prompt(problem: Problem) -> dict[str, Any]:
    """A prompts line with the messages of a conversation."""
    return {"problem_id": problem.problem_id, "messages": list(problem.messages)}


def completion_prompt(problem: Problem) -> dict[str, Any]:
    """A prompts line with raw text to continue."""
    if not problem.prompt_code:
        raise EvalError(f'problem "{problem.problem_id}" has no code to continue', fix="use --style chat")
    line = {"problem_id": problem.problem_id, "prompt": problem.prompt_code}
    return line if problem.suffix_code is None else line | {"suffix": problem.suffix_code}


STYLES: dict[str, Callable[[Problem], dict[str, Any]]] = {"chat": chat_prompt, "completion": completion_prompt}
