"""Problems in mft-eval's own shape, for every language and way of testing."""

from typing import Any

from mft_eval.errors import EvalError
from mft_eval.generations.extraction import preamble_of
from mft_eval.problems.compiled_tests import compiled_test
from mft_eval.problems.fields import text, texts, user_message
from mft_eval.problems.problem import InputOutputTest, Problem, PythonTest, Test
from mft_eval.problems.sql_shapes import sql_messages, sql_test
from mft_eval.problems.translation import LANGUAGE_TITLES

# As judging's languages has them; a problem in another one is refused when it is read.
LANGUAGE_NAMES = ("python", "cpp", "javascript", "java", "rust", "go", "sql")


def own_problem(record: dict[str, Any], where: str) -> Problem:
    """Our own shape; FORMAT.md has its fields."""
    language = text(record, "language", where, "python")
    if language not in LANGUAGE_NAMES:
        raise EvalError(f'"language" is "{language}"', where=where, fix=f"use one of {', '.join(LANGUAGE_NAMES)}")
    prompt, messages = _asked(record, where)
    timeout = record.get("timeout_seconds")
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and 0.1 <= timeout <= 3600
    if timeout is not None and not is_number:
        raise EvalError('"timeout_seconds" is not a number from 0.1 to 3600', where=where)
    setup = text(record, "setup", where, "")
    if language == "sql":
        messages, prompt = sql_messages(setup, prompt) if prompt else messages, ""
    return Problem(
        problem_id=text(record, "problem_id", where),
        messages=messages,
        prompt_code=setup + prompt if prompt else "",
        test=_test(record, language, setup, prompt, where),
        reference=("" if language == "sql" else setup) + text(record, "reference", where),
        language=language,
        tags=tuple(sorted(set(texts(record, "tags", where)))),
        timeout_seconds=timeout,
        source=_source(record.get("source"), where),
    )


def _source(source: Any, where: str) -> tuple[str, str] | None:
    if source is None:
        return None
    match source:
        case {"language": str(language), "code": str(code)} if language in LANGUAGE_TITLES:
            return language, code
    fix = f"a language of {', '.join(LANGUAGE_TITLES)}"
    raise EvalError('"source" is not an object with "language" and "code"', where=where, fix=f"give it {fix}")


def _asked(record: dict[str, Any], where: str) -> tuple[str, tuple[dict[str, str], ...]]:
    if ("prompt" in record) == ("messages" in record):
        raise EvalError('a problem has either "prompt" or "messages"', where=where)
    if "prompt" in record:
        prompt = text(record, "prompt", where)
        return prompt, user_message(prompt)
    messages = record["messages"]
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        raise EvalError('"messages" is not a list of objects with "role" and "content"', where=where)
    return "", tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )


def _test(record: dict[str, Any], language: str, setup: str, prompt: str, where: str) -> Test:
    if language == "sql":
        return sql_test(setup, text(record, "reference", where), where)
    if ("test" in record) == ("cases" in record):
        raise EvalError('a problem has either "test" or "cases"', where=where)
    if "cases" in record:
        return InputOutputTest(_cases(record["cases"], where))
    entry_point, script = text(record, "entry_point", where), text(record, "test", where)
    if language == "python":
        return PythonTest(entry_point, script, setup + preamble_of(prompt, entry_point))
    return compiled_test(language, entry_point, script, where=where)


def _cases(cases: Any, where: str) -> tuple[tuple[str, str], ...]:
    keys = ("input", "output")
    is_list = isinstance(cases, list) and bool(cases) and all(isinstance(case, dict) for case in cases)
    if not is_list or not all(isinstance(case.get(key), str) for case in cases for key in keys):
        raise EvalError('"cases" is not a list of objects with "input" and "output"', where=where)
    return tuple((case["input"], case["output"]) for case in cases)
