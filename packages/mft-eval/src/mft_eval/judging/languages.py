"""The languages that whole programs can be written in: how each is built and run inside the sandbox."""

import os
import shutil
import sys
from dataclasses import dataclass, field

from mft_eval.errors import EvalError
from mft_eval.sandbox.bubblewrap import toolchain_mounts
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
    files: dict[str, str] = field(default_factory=dict)


# A toolchain finds its libraries by /proc, which the sandbox has not.
_LIBRARIES = ("env", "LD_LIBRARY_PATH={folder}/../lib")
_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-XX:-UseContainerSupport", "-Xshare:auto")
# The linker by its own name: cc is a link by way of /etc.
_RUSTC = ("--edition", "2021", "-A", "warnings", "-C", "debuginfo=0", "-C", "linker=gcc")
_RUST_MAIN = """mod program;
fn main() {
    program::mft_run();
    let mut word = String::new();
    std::io::stdin().read_line(&mut word).unwrap();
    print!("{}", word);
}
"""
# A root that is told need not be found by /proc; nothing is fetched.
_GO = ("env", "GOROOT={folder}/..", "GO111MODULE=off", "GOTOOLCHAIN=local", "CGO_ENABLED=0")
LANGUAGES = {
    language.name: language
    for language in (
        Language("python", "python3", "main.py", (), ("{python}", "-I", "-S", "-B", "main.py")),
        Language("cpp", "g++", "main.cpp", ("g++", "-std=c++17", "-O1", "-w", "-o", "main", "main.cpp"), ("./main",)),
        Language("sql", "python3", QUERY_FILE, (), ("{python}", "-I", "-S", "-B", "{package}/sandbox/sql_host.py")),
        Language("javascript", "node", "main.js", (), ("node", "main.js"), "RLIMIT_DATA", 32),
        Language(
            "java",
            "javac",
            "Main.java",
            (*_LIBRARIES, "{command}", *(f"-J{option}" for option in _JVM), "-nowarn", "-proc:none", "Main.java"),
            (*_LIBRARIES, "{folder}/java", *_JVM, "-ea", "-Xss64m", "-cp", ".", "MftTests"),
            "RLIMIT_DATA",
            64,
        ),
        Language(
            "rust",
            "rustc",
            "program.rs",
            (*_LIBRARIES, "{command}", *_RUSTC, "-o", "main", "main.rs"),
            ("./main",),
            "RLIMIT_DATA",
            64,
            {"main.rs": _RUST_MAIN},
        ),
        Language(
            "go",
            "go",
            "program.go",
            (*_GO, "{command}", "build", "-buildvcs=false", "-o", "main", "."),
            ("./main",),
            "RLIMIT_DATA",
            64,
        ),
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
    """Where the sandbox shows the language's command, or None; for some it is this interpreter."""
    if language.name in _OURS:
        return sys.executable
    folders = {"/usr/local/bin": "", "/usr/bin": "", "/bin": ""}
    folders |= {f"{outside}/bin": f"{inside}/bin" for inside, outside in toolchain_mounts().items()}
    for outside, inside in folders.items():
        if found := shutil.which(language.command, path=outside):
            path = os.path.realpath(found)
            if inside:
                return f"{inside}/{language.command}"
            if path.startswith("/usr/"):
                return path
    return None
