"""Problems in other languages than Python: MultiPL-E's and HumanEval-X's shapes."""

import re
from dataclasses import replace
from typing import Any

from mft_eval.errors import EvalError
from mft_eval.generations.go_source import go_file
from mft_eval.problems.compiled_tests import compiled_test
from mft_eval.problems.fields import task_id, text, user_message
from mft_eval.problems.problem import Problem
from mft_eval.problems.translation import LANGUAGE_TITLES

_MULTIPLE = {"cpp": "cpp", "js": "javascript", "java": "java", "rs": "rust", "go": "go", "go_test.go": "go"}
HUMANEVAL_X = {"CPP": "cpp", "JavaScript": "javascript", "Java": "java", "Rust": "rust", "Go": "go"}
# HumanEval-X names crates that a machine without a registry has not; hardly a program uses them.
_CRATES = re.compile(r"^[ \t]*use\s+(?:rand|regex|md5)\b[^;]*;", re.MULTILINE)
# Nor has it the tuples that MultiPL-E's Java imports; the pair is all that its problems use of them.
_JAVATUPLES = re.compile(r"^import org\.javatuples\.\*;[ \t]*\n", re.MULTILINE)
_PAIR = """
class Pair<A, B> {
    private final A first;
    private final B second;
    Pair(A first, B second) { this.first = first; this.second = second; }
    static <A, B> Pair<A, B> with(A first, B second) { return new Pair<>(first, second); }
    A getValue0() { return first; }
    B getValue1() { return second; }
    public boolean equals(Object other) {
        return other instanceof Pair && Objects.equals(first, ((Pair<?, ?>) other).first)
            && Objects.equals(second, ((Pair<?, ?>) other).second);
    }
    public int hashCode() { return Objects.hash(first, second); }
    public String toString() { return "[" + first + ", " + second + "]"; }
}
"""
_CLASS = re.compile(r"\bclass\s+(\w+)")
_LAST_FUNCTION = {
    "cpp": re.compile(r"([A-Za-z_]\w*)\s*\([^{};]*\)\s*\{\s*\Z"),
    "java": re.compile(r"([A-Za-z_]\w*)\s*\([^{};]*\)[^{};()]*\{\s*\Z"),
    "go": re.compile(r"func\s+(?:\([^()]*\)\s*)?([A-Za-z_]\w*)\s*\([^{}]*\{\s*\Z"),
    "rust": re.compile(r"fn\s+([A-Za-z_]\w*)[^{}]*\{\s*\Z"),
    "javascript": re.compile(r"(?:function\s+|const\s+|let\s+|var\s+)([A-Za-z_$]\w*)[^{}]*\{\s*\Z"),
}


def multiple_problem(record: dict[str, Any], where: str) -> Problem:
    """MultiPL-E's shape: a prompt to continue and tests that follow; no reference."""
    language = _language(text(record, "language", where), _MULTIPLE, where)
    prompt, tests = text(record, "prompt", where), text(record, "tests", where)
    # In some languages the tests begin with the brace that closes the function.
    tests = tests.lstrip().removeprefix("}") if tests.lstrip().startswith("}") else tests
    if language == "java" and _JAVATUPLES.search(prompt):
        prompt = _JAVATUPLES.sub("", prompt)
        tests += _PAIR if re.search(r"\bPair\b", prompt + tests) else ""
    return _problem(text(record, "name", where), language, prompt, tests, "", where)


def humaneval_x_problem(record: dict[str, Any], where: str) -> Problem:
    """HumanEval-X's shape: a prompt to continue, a solution and a test that follows; in HumanEvalPack a bug."""
    name = task_id(record, where)
    language = _language(name.partition("/")[0], HUMANEVAL_X, where)
    prompt = text(record, "prompt", where)
    reference = prompt + text(record, "canonical_solution", where)
    buggy = prompt + text(record, "buggy_solution", where) if "buggy_solution" in record else ""
    # Go's tests come with imports in a field of their own.
    test = text(record, "test_setup", where, "") + text(record, "test", where)
    return replace(_problem(name, language, prompt, test, reference, where), buggy=buggy)


def _language(name: str, known: dict[str, str], where: str) -> str:
    if name not in known:
        raise EvalError(f'the language is "{name}"', where=where, fix=f"use one of {', '.join(known)}")
    return known[name]


def _problem(problem_id: str, language: str, prompt: str, tests: str, reference: str, where: str) -> Problem:
    found = _LAST_FUNCTION[language].search(prompt)
    if found is None:
        raise EvalError("the prompt does not end in the head of a function", where=where)
    name = LANGUAGE_TITLES[language]
    # A test in Java that is no class of its own derives from the one that the prompt opens.
    opened = _CLASS.search(prompt) if language == "java" else None
    if language == "go":
        reference = go_file(reference) if reference else ""
    if language == "rust":
        prompt, reference = _CRATES.sub("", prompt), _CRATES.sub("", reference)
    ask = f"Complete this {name} function. Answer with the whole function in one fenced block of {name}."
    return Problem(
        problem_id=problem_id,
        messages=user_message(f"{ask}\n\n```{language}\n{prompt.strip()}\n```"),
        prompt_code=prompt,
        test=compiled_test(language, found[1], tests, opened[1] if opened else "", where),
        reference=reference,
        language=language,
    )
