"""Cuts three task folders of conversations, very unequal in size, out of the running Python's own standard library."""

import ast
import hashlib
import os
import platform
import shutil
import sysconfig
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import orjson

Conversation = list[dict[str, str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef

SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "idle_test",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}
# Characters, for about 250 tokens: a fine-tune on a CPU then sees many conversations.
MAX_CONVERSATION = 800
MIN_DOCSTRING = 20
# Of the body with comments and layout taken out; shorter ones only pass a value on.
MIN_BODY = 40
MIN_CONVERSATIONS = 100
PART_CONVERSATIONS = 1000
MANIFEST_NAME = "manifest.json"
PROBLEMS_PATH = Path(__file__).with_name("demo_problems.py")
SYSTEM = "You complete Python code. Answer with the missing lines only."


@dataclass(frozen=True, slots=True)
class Snippet:
    """One function of the library as text without its outer indentation, whole and in its parts."""

    kind: str  # "function", or "method" inside a class
    lines: tuple[str, ...]
    docstring: str
    head: str  # the signature and the docstring
    code: str  # the function without the docstring
    cuts: tuple[int, ...]  # the lines at which a statement starts, after the first of the body
    digest: str  # of the arguments and the body, free of docstring, comments and layout


def functions_of(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Yields the functions at module level and the methods of classes at module level, in order, with their kind."""
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        kind = "method" if isinstance(node, ast.ClassDef) else "function"
        for member in members:
            if isinstance(member, Function) and not member.decorator_list:
                yield kind, member


def snippet_of(kind: str, function: Function, source_lines: list[str]) -> Snippet | None:
    """Returns the function as a snippet; None if it is trivial or laid out in a way that cannot be cut by lines."""
    docstring = (ast.get_docstring(function) or "").strip()
    body = function.body[1:] if docstring else function.body
    if not body or isinstance(body[0], ast.Raise | ast.Pass):
        return None
    normalised = ast.unparse(function.args) + "\n" + ast.unparse(ast.Module(body, []))
    if len(normalised) < MIN_BODY:
        return None
    text = textwrap.dedent("\n".join(source_lines[function.lineno - 1 : function.end_lineno]))
    if not text.startswith(("def ", "async def ")) or "\t" in text or "```" in text:
        return None
    first = function.body[0]
    lines = tuple(line.rstrip() for line in text.split("\n"))
    start = first.lineno - function.lineno
    if not lines[start - 1].endswith(":") or (docstring and body[0].lineno <= first.end_lineno):
        return None
    end = first.end_lineno - function.lineno + 1 if docstring else start
    rest = "\n".join(lines[end:]).lstrip("\n")
    starts = {node.lineno - function.lineno for node in ast.walk(function) if isinstance(node, ast.stmt)}
    return Snippet(
        kind=kind,
        lines=lines,
        docstring=docstring,
        head="\n".join(lines[:end]),
        code="\n".join([*lines[:start], rest]),
        cuts=tuple(sorted(line for line in starts if line > start)),
        digest=hashlib.sha256(normalised.encode()).hexdigest(),
    )


def read_library(root: Path) -> list[Snippet]:
    """Returns every distinct usable function under `root`: functions, then methods, each in the order of digests."""
    snippets = {}
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):  # fixtures, and files in older encodings
            continue
        source_lines = source.split("\n")
        for kind, function in functions_of(tree):
            snippet = snippet_of(kind, function, source_lines)
            if snippet:
                snippets.setdefault(snippet.digest, snippet)
    return sorted(snippets.values(), key=lambda snippet: (snippet.kind, snippet.digest))


def fenced(code: str) -> str:
    """Returns code in a Markdown fence."""
    return f"```python\n{code}\n```"


def turn(role: str, content: str) -> dict[str, str]:
    """Returns one round of a conversation."""
    return {"role": role, "content": content}


def docstring_to_code(snippet: Snippet) -> Conversation:
    """Asks for a function by its signature and docstring, in the words in which mft-eval puts a HumanEval problem."""
    ask = f"Complete this Python {snippet.kind}. Answer with the whole {snippet.kind} in one fenced Python block."
    return [turn("human", f"{ask}\n\n{fenced(snippet.head)}"), turn("bot", fenced(snippet.code))]


def code_to_docstring(snippet: Snippet) -> Conversation:
    """Asks for the docstring of a function; for one in four also, in a second round, for the two put together."""
    rounds = [
        turn("human", f"Write a docstring for this Python {snippet.kind}.\n\n{fenced(snippet.code)}"),
        turn("bot", snippet.docstring),
    ]
    if int(snippet.digest, 16) % 4 == 0:
        rounds += [turn("human", "Show me the code with it."), turn("bot", fenced("\n".join(snippet.lines)))]
    return rounds


def code_completion(snippet: Snippet) -> Conversation:
    """Asks for the second half of a function; for one in three under a system round."""
    middle = min(snippet.cuts, key=lambda line: abs(2 * line - len(snippet.lines)))
    rounds = [
        turn("human", f"Continue this Python {snippet.kind}.\n\n{fenced(chr(10).join(snippet.lines[:middle]))}"),
        turn("bot", fenced("\n".join(snippet.lines[middle:]))),
    ]
    return [turn("system", SYSTEM), *rounds] if int(snippet.digest, 16) % 3 == 0 else rounds


@dataclass(frozen=True, slots=True)
class Task:
    """A task: which snippets it takes, the conversation it makes of one, and how many at most."""

    name: str
    takes: Callable[[Snippet], bool]
    conversation: Callable[[Snippet], Conversation]
    size: int


def is_for_docstrings(snippet: Snippet) -> bool:
    """Whether a documented snippet belongs to code-to-docstring, as a ninth do: no two tasks share a function."""
    return int(snippet.digest, 16) % 9 == 0


TASKS = [
    Task(
        "docstring-to-code",
        lambda snippet: len(snippet.docstring) >= MIN_DOCSTRING and not is_for_docstrings(snippet),
        docstring_to_code,
        2000,
    ),
    Task("code-completion", lambda snippet: not snippet.docstring and snippet.cuts != (), code_completion, 700),
    Task(
        "code-to-docstring",
        lambda snippet: len(snippet.docstring) >= MIN_DOCSTRING and is_for_docstrings(snippet),
        code_to_docstring,
        250,
    ),
]


def conversations_of(task: Task, snippets: list[Snippet]) -> list[Conversation]:
    """Returns the task's conversations: short ones, no two with the same question."""
    chosen: dict[str, Conversation] = {}
    for snippet in snippets:
        if len(chosen) == task.size:
            break
        if task.takes(snippet):
            rounds = task.conversation(snippet)
            if sum(len(round_["content"]) for round_ in rounds) <= MAX_CONVERSATION:
                question = next(round_["content"] for round_ in rounds if round_["role"] == "human")
                chosen.setdefault(question, rounds)
    if len(chosen) < MIN_CONVERSATIONS:
        raise click.ClickException(
            f"{len(chosen)} functions for {task.name} where {MIN_CONVERSATIONS} are needed, "
            f"in {sysconfig.get_path('stdlib')}, use a Python with its whole standard library"
        )
    return list(chosen.values())


def problem_records() -> list[dict[str, str]]:
    """Returns the problems of demo_problems.py in HumanEval's shape."""
    source = PROBLEMS_PATH.read_text(encoding="utf-8")
    lines = source.split("\n")
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    records = []
    for number, (solution, check) in enumerate(zip(functions[::2], functions[1::2], strict=True)):
        assert check.name == f"check_{solution.name}"
        docstring_end = solution.body[0].end_lineno
        check_text = "\n".join(lines[check.lineno - 1 : check.end_lineno])
        records.append(
            {
                "task_id": f"Demo/{number}",
                "prompt": "\n".join(lines[solution.lineno - 1 : docstring_end]) + "\n",
                "entry_point": solution.name,
                "canonical_solution": "\n".join(lines[docstring_end : solution.end_lineno]) + "\n",
                "test": check_text.replace(check.name, "check", 1) + "\n",
            }
        )
    return records


def jsonl(records: list[dict]) -> bytes:
    """Returns records as lines of JSON."""
    return b"".join(orjson.dumps(record) + b"\n" for record in records)


def demo_files() -> dict[str, bytes]:
    """Returns every file of the output by its relative path, but for the manifest."""
    snippets = read_library(Path(sysconfig.get_path("stdlib")))
    files = {"problems.jsonl": jsonl(problem_records())}
    for task in TASKS:
        records = [
            {"id": number, "data_name": task.name, "chat_rounds": rounds}
            for number, rounds in enumerate(conversations_of(task, snippets))
        ]
        click.echo(f"{task.name}: {len(records)} conversations", err=True)
        for part, start in enumerate(range(0, len(records), PART_CONVERSATIONS)):
            files[f"tasks/{task.name}/part-{part:03}.jsonl"] = jsonl(records[start : start + PART_CONVERSATIONS])
    return files


def origin() -> dict[str, str]:
    """Returns what the output depends on: this Python, this script and the problems beside it."""
    scripts = Path(__file__).read_bytes() + PROBLEMS_PATH.read_bytes()
    return {"python": platform.python_version(), "scripts_sha256": hashlib.sha256(scripts).hexdigest()}


def digests(directory: Path) -> dict[str, str]:
    """Returns the sha256 of every file under `directory` but the manifest, by relative path."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST_NAME)
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def is_complete(out: Path) -> bool:
    """Whether `out` is what this script writes with this Python, untouched."""
    try:
        manifest = orjson.loads((out / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return manifest == {"format_version": "1", **origin(), "files": digests(out)}


def write_files(files: dict[str, bytes], out: Path) -> None:
    """Writes the files and their manifest beside `out` and renames them into place."""
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        for name, content in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(content)
        manifest = {"format_version": "1", **origin(), "files": digests(staging)}
        (staging / MANIFEST_NAME).write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n")
        for path in staging.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        staging.chmod(0o755)
        staging.replace(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(out: Path) -> None:
    """Make the embedded data as the directory OUT: task folders in OUT/tasks, and OUT/problems.jsonl to evaluate on.

    Does nothing when OUT already holds them. Prints OUT.
    """
    out = out.absolute()
    if not is_complete(out):
        if out.is_dir() and any(out.iterdir()):
            raise click.ClickException(f"the directory is not empty, in {out}, choose another or remove it")
        try:
            files = demo_files()
            out.parent.mkdir(parents=True, exist_ok=True)
            write_files(files, out)
        except OSError as error:
            raise click.ClickException(f"cannot write the tasks: {error.strerror or error}, in {out}") from error
    click.echo(out)


if __name__ == "__main__":
    main()
