"""One sample judged by hand."""

import json

import pytest
from click.testing import CliRunner

from mft_eval.cli import main

BODY = '    print("seen \\x1b[31m", len(numbers))\n    if threshold == 0.05:\n        raise ValueError("too near")\n'
BODY += "    return len(numbers) == 6 and threshold == 0.3\n"


def run(*arguments):
    return CliRunner().invoke(main, ["reproduce", "humaneval", *map(str, arguments)])


@pytest.fixture
def generations(tmp_path):
    path = tmp_path / "g.jsonl"
    line = {"problem_id": "HumanEval/0", "sample_index": 3, "completion": f"{BODY}\n\nprint('no')\n"}
    path.write_text(json.dumps(line) + "\n")
    return path


def test_the_failing_call_the_error_and_the_output_are_told(generations):
    result = run(generations, "HumanEval/0", 3)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == ["verdict: exception: ValueError", "mode: outside"]
    assert "failed at: line 11 of the test: assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.05) == False" in lines
    assert "last call: ([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.05)" in lines
    assert "error: ValueError: too near" in lines
    # A control character of the program's does nothing to the terminal.
    assert lines[-2:] == ["    seen ?[31m 6", "    seen ?[31m 6"]


def test_the_program_is_shown_as_it_is_judged(generations):
    shown = run(generations, "HumanEval/0", 3, "--show-program").stdout
    assert shown.startswith("from typing import List\n")
    assert shown.rstrip().endswith(BODY.rstrip())


def test_what_is_not_there_is_one_clear_error(generations):
    assert 'no problem is called "HumanEval/999"' in run(generations, "HumanEval/999", 0).stderr
    assert 'problem "HumanEval/0" has no sample 1' in run(generations, "HumanEval/0", 1).stderr
    assert "it has 3" in run(generations, "HumanEval/0", 1).stderr
