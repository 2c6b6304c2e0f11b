"""The habits that the five commands share: quick help, versions, exit codes and the shape of errors."""

import importlib
import importlib.metadata
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

COMMANDS = ["mft-data", "mft-train", "mft-merge", "mft-infer", "mft-eval"]
HEAVY = {"accelerate", "bitsandbytes", "deepspeed", "peft", "streaming", "tokenizers", "torch", "transformers"}
HELP_SECONDS = 0.3  # of processor time, which another program's load does not lengthen as it does wall time
# Sound command lines but for an input that does not exist; run in an empty folder.
MISSING_INPUTS = [
    ["mft-data", "build", "missing/", "out", "--tokenizer", "."],
    ["mft-data", "build", "task=missing.jsonl", "out", "--tokenizer", "."],
    ["mft-data", "join", "missing/", "out"],
    ["mft-data", "inspect", "missing/"],
    ["mft-data", "preview", "missing/", "--tokenizer", "."],
    ["mft-data", "verify", "missing/"],
    ["mft-train", "launch", "missing.yaml"],
    ["mft-train", "plan", "missing.yaml"],
    ["mft-train", "init", "missing/run.yaml"],
    ["mft-train", "import-mftcoder", "missing.json", "new.yaml"],
    ["mft-train", "report", "missing/"],
    ["mft-merge", "merge", "missing/", "out"],
    ["mft-merge", "extract", "missing/", "missing/", "out", "--rank", "2"],
    ["mft-infer", "generate", "missing/", "missing.jsonl", "out.jsonl"],
    ["mft-infer", "chat", "missing/"],
    ["mft-infer", "serve", "missing/"],
    ["mft-eval", "problems", "missing.jsonl"],
    ["mft-eval", "score", "humaneval", "missing.jsonl"],
    ["mft-eval", "join", "missing.json", "out.json"],
    ["mft-eval", "compare", "missing.json", "missing.too.json"],
    ["mft-eval", "show", "missing.json"],
    ["mft-eval", "report", "missing.json", "--html", "report.html"],
    ["mft-eval", "text", "missing.jsonl", "generations.jsonl"],
    ["mft-eval", "convert", "humaneval", "missing.jsonl"],
    ["mft-eval", "reproduce", "humaneval", "missing.jsonl", "HumanEval/0", "0"],
]
READS_NOTHING = {("mft-train", "schema"), ("mft-eval", "doctor")}


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs an installed command as a person would, with nothing on stdin."""
    script = Path(sys.executable).parent / command[0]
    return subprocess.run(
        [script, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=cwd
    )


def module_name(name: str) -> str:
    """The module that holds the command's `main`."""
    return f"{name.replace('-', '_')}.cli"


def tree(name: str) -> Iterator[tuple[list[str], click.Command]]:
    """Yields the command and each of its subcommands, with the words that call it."""
    pending = [([name], importlib.import_module(module_name(name)).main)]
    while pending:
        words, command = pending.pop()
        yield words, command
        if isinstance(command, click.Group):
            pending += [([*words, subname], subcommand) for subname, subcommand in command.commands.items()]


def processor_seconds() -> float:
    """Processor time that all finished child processes took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", COMMANDS)
def test_version_is_name_and_version_of_the_package(name):
    result = run(name, "--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{name}, version {importlib.metadata.version(name)}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_answers_at_once(name):
    for words, _ in tree(name):
        for option in ["--help", "-h"]:
            seconds = []
            for _ in range(3):
                before = processor_seconds()
                result = run(*words, option)
                seconds.append(processor_seconds() - before)
                assert (result.returncode, result.stderr) == (0, "")
                assert result.stdout.startswith(f"Usage: {' '.join(words)} ")
            assert min(seconds) < HELP_SECONDS, f"{' '.join(words)} {option}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_loads_no_heavy_library(name):
    calls = [[*words[1:], "--help"] for words, _ in tree(name)]
    program = (
        "import contextlib, io, sys\n"
        f"from {module_name(name)} import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as answer:\n"
        f"    for arguments in {calls}:\n"
        "        main(arguments, standalone_mode=False)\n"
        f"assert answer.getvalue().count('Usage: ') == {len(calls)}\n"
        f"print(*sorted({HEAVY} & sys.modules.keys()))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_and_option_says_what_it_does(name):
    for words, command in tree(name):
        first_paragraph = (command.help or "").strip().split("\n\n")[0]
        assert first_paragraph.endswith("."), f"{' '.join(words)} has no sentence: {first_paragraph!r}"
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{' '.join(words)} {parameter.opts[0]} has no help"


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_option_is_wrong_usage(name):
    for words, _ in tree(name):
        result = run(*words, "--no-such-option")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.splitlines()[-1].startswith("Error: No such option")


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_argument_is_wrong_usage(name):
    with_arguments = [
        words
        for words, command in tree(name)
        if isinstance(command, click.Group) or any(parameter.required for parameter in command.params)
    ]
    assert with_arguments
    for words in with_arguments:
        result = run(*words)
        assert (result.returncode, result.stdout) == (2, ""), " ".join(words)
        assert result.stderr.startswith("Usage: ")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "mft-merge"])
def test_unknown_subcommand_is_wrong_usage(name):
    result = run(name, "no-such-command")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("Error: No such command")


@pytest.mark.parametrize("command", MISSING_INPUTS, ids=" ".join)
def test_missing_input_is_one_line_of_error(command, tmp_path):
    result = run(*command, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "missing" in line
    assert list(tmp_path.iterdir()) == []


def test_every_leaf_that_reads_a_file_is_tried_with_a_missing_one():
    tried = {(command[0], command[1]) for command in MISSING_INPUTS}
    leaves = {
        tuple(words) for name in COMMANDS for words, command in tree(name) if not isinstance(command, click.Group)
    }
    assert leaves == tried | READS_NOTHING
