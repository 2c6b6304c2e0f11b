"""The languages that whole programs can be written in: how each is built and run inside the sandbox."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from mft_eval.errors import EvalError
from mft_eval.sandbox.sql_host import QUERY_FILE


@dataclass(frozen=True, slots=True)
class Language:
    """A source file's name and the commands over it; `command` is the program that must be on the machine.

    `memory_limit` is the resource that --memory-mb bounds: some runtimes reserve far more address space than they use.
    """

    name: str
    command: str
    file_name: str
    build: tuple[str, ...]
    run: tuple[str, ...]
    memory_limit: str = "RLIMIT_AS"
    num_processes: int = 16


LANGUAGES = {
    language.name: language
    for language in (
        Language("python", "python3", "main.py", (), ("{python}", "-I", "-S", "-B", "main.py")),
        Language("cpp", "g++", "main.cpp", ("g++", "-std=c++17", "-O1", "-w", "-o", "main", "main.cpp"), ("./main",)),
        Language("sql", "python3", QUERY_FILE, (), ("{python}", "-I", "-S", "-B", "{package}/sandbox/sql_host.py")),
        Language("javascript", "node", "main.js", (), ("node", "main.js"), "RLIMIT_DATA", 32),
    )
}
# They run in the interpreter that runs this.
_OURS = ("python", "sql")


def check_toolchain(name: str) -> None:
    """Raises unless the toolchain of the language is on this machine, at a place that the sandbox shows."""
    language = LANGUAGES[name]
    if toolchain_path(language) is None:
        what = f"programs in {name} need {language.command}, which is not on this machine"
        raise EvalError(what, fix="install it, see mft-eval doctor")


def toolchain_path(language: Language) -> str | None:
    """Where the language's command lies, below /usr or /bin, or None; for some it is this interpreter."""
    if language.name in _OURS:
        return sys.executable
    found = shutil.which(language.command, path="/usr/local/bin:/usr/bin:/bin")
    return found if found and Path(os.path.realpath(found)).is_relative_to("/usr") else None
