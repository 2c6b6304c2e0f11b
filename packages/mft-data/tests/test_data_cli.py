"""The command line: bad input and wrong usage end in one line, and leave nothing behind."""

import re
import resource
import shutil
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mft_data.cli import main

GOOD = {"chat_rounds": [{"role": "human", "content": "add"}, {"role": "bot", "content": "sum"}]}


@pytest.fixture
def run(tmp_path, tokenizer_dir, monkeypatch):
    """Runs a command in `tmp_path`, with the tokenizer where `TOKENIZER` stands; returns the result."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, exit_code=1):
        arguments = [str(tokenizer_dir) if argument == "TOKENIZER" else str(argument) for argument in arguments]
        result = CliRunner().invoke(main, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == exit_code, result.output
        return result

    return invoke


def build_error(run, *arguments):
    """The one line that a failing build prints, after checking that nothing else appeared.

    Finished work, which is kept and named, is removed.
    """
    before = sorted(Path().iterdir())
    result = run("build", *arguments, "--tokenizer", "TOKENIZER")
    kept = Path(".out.partial")
    remedy = "give --resume to go on with it, or --overwrite to begin anew"
    note = f" (the finished work is kept in {kept.absolute()}: {remedy})"
    assert kept.exists() == (note in result.stderr)
    shutil.rmtree(kept, ignore_errors=True)
    assert sorted(Path().iterdir()) == before
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.strip().replace(note, "")


def test_sources_that_cannot_be(run, write_task, tmp_path):
    write_task("t", [GOOD])
    write_task("other", [GOOD])
    write_task("my task", [GOOD])
    write_task("hidden", [GOOD], ".part.jsonl")
    write_task("broken", [GOOD], "a\nb.jsonl")
    assert build_error(run, "missing", "out") == 'Error: source "missing" does not exist'
    assert build_error(run, "t=missing", "out") == 'Error: source "missing" does not exist'
    assert 'source "t=" has no path' in build_error(run, "t=", "out")
    assert "give a file its task's name: NAME=t/part.jsonl" in build_error(run, "t/part.jsonl", "out")
    assert '"my task" cannot name a task' in build_error(run, "my task", "out")
    assert 'task "t" is named twice (t and other), name one of them' in build_error(run, "t/", "t=other", "out")
    assert 'source "hidden" has no file that ends in .jsonl, .jsonl.gz, .jsonl.zst' in build_error(run, "hidden", "out")
    assert r"a file has the name 'a\nb.jsonl', in broken" in build_error(run, "broken", "out")
    run("build", "name=my task", "file=t/part.jsonl", "out", "--tokenizer", "TOKENIZER", exit_code=0)


def test_outputs_that_cannot_be(run, write_task, tmp_path):
    write_task("t", [GOOD])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    assert 'output "full" is not empty, give --overwrite' in build_error(run, "t", "full")
    assert 'output "full" is not a dataset, remove it yourself' in build_error(run, "t", "full", "--overwrite")
    assert (tmp_path / "full" / "thesis.txt").exists()
    assert 'output "t/part.jsonl" and source "t" lie in each other' in build_error(run, "t", "t/part.jsonl")
    assert 'output "t/deep/out" and source "t" lie in each other' in build_error(run, "t", "t/deep/out")
    assert 'output "." and source "t" lie in each other' in build_error(run, "t", ".", "--overwrite")
    assert 'output "full/thesis.txt" is a file' in build_error(run, "t", "full/thesis.txt", "--overwrite")
    assert "full/thesis.txt" in build_error(run, "t", "full/thesis.txt/out")


def test_records_that_cannot_be(run, write_task):
    write_task("t", [GOOD, {"chat_rounds": [{"role": "sytem", "content": "x"}]}, GOOD, {"chat_rounds": 3}])
    write_task("void", [b"", b"  "])
    assert build_error(run, "t", "out") == (
        'Error: unknown role "sytem" in round 1, in t/part.jsonl line 2, '
        'write "system" (the roles are system, developer, human, user, bot, assistant, gpt, tool)'
    )
    assert build_error(run, "t", "out", "--max-rejects", "1") == (
        'Error: more than 1 record was refused, the first: unknown role "sytem" in round 1, in t/part.jsonl line 2'
    )
    assert "2 of at most 4 records were refused, more than 49.9 %, the first: unknown role" in build_error(
        run, "t", "out", "--max-rejects", "49.9%"
    )
    assert 'task "void" has no conversations to train on (0 read' in build_error(run, "void", "out")
    assert 'field "messages" is missing, in t/part.jsonl line 1' in build_error(run, "t", "out", "--format", "messages")
    run("build", "t", "out", "--tokenizer", "TOKENIZER", "--max-rejects", "50%", exit_code=0)
    run("build", "t", "out2", "--tokenizer", "TOKENIZER", "--max-rejects", "2", exit_code=0)


def test_a_row_too_short_for_any_conversation(run, write_task):
    write_task("t", [GOOD])
    assert build_error(run, "t", "out", "--seq-length", "8") == (
        'Error: task "t" has no conversations to train on (1 read, 1 overlong dropped), give it others, or leave it out'
    )
    message = build_error(run, "t", "out", "--seq-length", "8", "--overlong", "error")
    assert re.search(r"has \d+ tokens, more than the 8 of a row, in t/part.jsonl line 1, raise --seq-length", message)
    run("build", "t", "out", "--tokenizer", "TOKENIZER", "--seq-length", "1", exit_code=2)


def test_tokenizers_that_cannot_be(run, write_task, tmp_path):
    write_task("t", [GOOD])
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    ByT5Tokenizer().save_pretrained(tmp_path / "slow")
    without_eos = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    without_eos.save_pretrained(tmp_path / "without")
    for name, message in (
        ("empty", "no tokenizer can be loaded ("),
        ("damaged", "no tokenizer can be loaded ("),
        ("slow", "the tokenizer has no fast version, in slow"),
        ("without", "the tokenizer has no EOS token, in without, give --eos-token"),
    ):
        result = run("build", "t", "out", "--tokenizer", name)
        assert result.stderr.startswith(f"Error: {message}")
        assert result.stderr.count("\n") == 1
    assert '"<|im_edn|>" is not a token' in build_error(run, "t", "out", "--eos-token", "<|im_edn|>")
    assert "use one like <|im_end|>" in build_error(run, "t", "out", "--eos-token", "<|im_edn|>")
    assert (
        "Directory 'missing' does not exist" in run("build", "t", "out", "--tokenizer", "missing", exit_code=2).stderr
    )


@pytest.mark.parametrize(
    "option",
    [
        ("--max-rejects", "-1"),
        ("--max-rejects", "few"),
        ("--max-rejects", "101%"),
        ("--max-rejects", "nan%"),
        ("--role-marker", "bot"),
        ("--role-marker", "robot=x"),
        ("--role-marker", r"bot=\x"),
        ("--role-marker", "bot=\\"),
        ("--role-marker", "bot=\ufdd0"),
        ("--validation", "1"),
        ("--template", "none"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_read(run, option):
    run("build", "missing", "out", "--tokenizer", "TOKENIZER", *option, exit_code=2)
    run(
        "build",
        "missing",
        "out",
        "--tokenizer",
        "TOKENIZER",
        "--role-marker=bot=a",
        "--role-marker=assistant=b",
        exit_code=2,
    )


@pytest.mark.parametrize("limit_bytes", [4_000, 200_000])
def test_a_disk_that_takes_no_more_is_one_line(run, write_task, limit_bytes):
    # The tokenizer has more bytes than the first limit, the rows more than the second.
    write_task("t", [{"text": f"{number} " * 100} for number in range(1000)])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, old[1]))
    try:
        message = build_error(run, "t", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "File too large" in message


def test_a_failure_keeps_the_old_dataset(run, write_task, tmp_path):
    write_task("t", [GOOD])
    run("build", "t", "out", "--tokenizer", "TOKENIZER", exit_code=0)
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    write_task("t", [GOOD, b"{"])
    assert "t/part.jsonl line 2" in build_error(run, "t", "out", "--overwrite")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_an_empty_folder_may_become_the_dataset(run, write_task, tmp_path):
    write_task("t", [GOOD])
    (tmp_path / "out").mkdir()
    run("build", "t", "out", "--tokenizer", "TOKENIZER", exit_code=0)
    mode = stat.S_IMODE((tmp_path / "out").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "t").stat().st_mode)


def test_the_help_of_the_group_cuts_no_summary_short(run):
    summaries = run("--help", exit_code=0).output.split("Commands:\n")[1]
    assert len(summaries.splitlines()) == len(main.commands)
    assert "..." not in summaries
