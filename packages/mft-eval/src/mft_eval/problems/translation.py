"""Translation of programs from one language into another, where the problem's own tests judge."""

import re
from collections.abc import Mapping
from dataclasses import replace

from mft_eval.problems.fields import user_message
from mft_eval.problems.problem import Problem

LANGUAGE_TITLES = {
    "python": "Python",
    "cpp": "C++",
    "javascript": "JavaScript",
    "java": "Java",
    "go": "Go",
    "rust": "Rust",
    "sql": "SQL",
}
_ASK = "Translate this {} code into {}. Answer with the whole translation in one fenced block."
_NUMBER = re.compile(r"(?:HumanEval|CPP|JavaScript|Java|Go|Rust|Python)[/_](\d+)")
_COMMENTS = re.compile(r"/\*.*?\*/\n?|^[ \t]*//[^\n]*\n", re.DOTALL | re.MULTILINE)


def humaneval_number(problem_id: str) -> int | None:
    """The number of the HumanEval problem that one of another language's was made from, or None."""
    found = _NUMBER.match(problem_id)
    return int(found[1]) if found else None


def translation_problem(problem: Problem, humaneval: Mapping[int, Problem]) -> Problem | None:
    """The problem that asks for a translation of its own source, or of the HumanEval problem of its number.

    None where there is neither. The head that the source file gives is shown without comments, which tell the task.
    """
    number = humaneval_number(problem.problem_id)
    original = humaneval.get(number) if number is not None and problem.language != "python" else None
    language, code = problem.source or (("python", original.reference) if original else ("", ""))
    if not code:
        return None
    target = LANGUAGE_TITLES[problem.language]
    ask = f"{_ASK.format(LANGUAGE_TITLES[language], target)}\n\n```{language}\n{code.strip()}\n```"
    head = _COMMENTS.sub("", problem.prompt_code) if problem.language != "python" else ""
    if head.strip():
        ask += f"\n\nIt begins like this:\n\n```{problem.language}\n{head.strip()}\n```"
    elif problem.entry_point:
        ask += f"\n\nThe tests call `{problem.entry_point}`."
    return replace(problem, messages=user_message(ask), prompt_code=head, is_translation=True)
