"""A problem: what a model is asked, and what decides whether its program is right."""

import ast
import builtins
import functools
import json
import symtable
from dataclasses import dataclass
from functools import cached_property

from mft_eval.problems.sql_databases import make_cases
from mft_eval.sandbox.sql_host import joined


@dataclass(frozen=True)
class PythonTest:
    """A script over the names of a Python program; `preamble` is what the problem itself defines for it."""

    entry_point: str
    script: str
    preamble: str = ""

    @property
    def names(self) -> list[str]:
        """The names that the script may look up in the program, sorted."""
        return sorted(_looked_up(self.script) | {self.entry_point})


@functools.cache
def _looked_up(script: str) -> frozenset[str]:
    """The names in a script that are not built in, kept for as long as the process lives, as the scripts are."""
    found, left = set(), [symtable.symtable(script, "<test>", "exec")]
    while left:
        table = left.pop()
        found |= {
            symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() or table.get_type() == "module"
        }
        left += table.get_children()
    return frozenset(found - set(vars(builtins)))


@functools.lru_cache(maxsize=8)
def parsed(code: str) -> ast.Module:
    """The tree of `code`, which is to be read only: what asks next for the same one gets it."""
    return ast.parse(code)


@dataclass(frozen=True, slots=True)
class InputOutputTest:
    """What a whole program must print for each of its inputs: (stdin, stdout) pairs."""

    cases: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class SqlTest:
    """What a query must give on databases with the tables of `schema`: the rows of `query`."""

    schema: str
    query: str

    @cached_property
    def cases(self) -> tuple[tuple[str, str], ...]:
        """Input and output of the script that runs a query on every database; none where none could be made."""
        found = make_cases(self.schema, self.query)
        given = [{"script": script, "is_ordered": is_ordered} for script, is_ordered, _ in found]
        return ((json.dumps(given), joined(rows for _, _, rows in found)),) if found else ()


@dataclass(frozen=True, slots=True)
class CompiledTest:
    """A test in the program's own language, which becomes a part of the program: `suffix` follows it.

    `files` are (name, content) of more source files that are built with it.
    """

    entry_point: str
    suffix: str
    files: tuple[tuple[str, str], ...] = ()


Test = PythonTest | InputOutputTest | SqlTest | CompiledTest


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `prompt_code` is what a completion continues (empty where there is no code to continue).

    `reference` is a whole program that solves it, or empty where the source has none; `timeout_seconds` overrides the
    run's. `suffix_code` is what follows the completion, where it is to fill a gap; `buggy` a whole program to repair.
    With `is_for_tests` the completion is a test script. `source` is the language and code of a program, which with
    `is_translation` is to be translated;
    `explanation` the words that the program is written from, and `docstring` those that they stand for. `base_test` is
    the easier part of the test, where that has a score of its own.
    """

    problem_id: str
    messages: tuple[dict[str, str], ...]
    prompt_code: str
    test: Test
    reference: str
    language: str = "python"
    tags: tuple[str, ...] = ()
    timeout_seconds: float | None = None
    suffix_code: str | None = None
    buggy: str = ""
    is_for_tests: bool = False
    source: tuple[str, str] | None = None
    is_translation: bool = False
    docstring: str = ""
    explanation: str | None = None
    base_test: PythonTest | None = None

    @property
    def entry_point(self) -> str:
        """The function or class that is tested; empty where a whole program is."""
        return "" if isinstance(self.test, InputOutputTest | SqlTest) else self.test.entry_point


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """The problems of one source in its order; `sha256` is of the file's bytes."""

    name: str
    sha256: str
    problems: tuple[Problem, ...]
