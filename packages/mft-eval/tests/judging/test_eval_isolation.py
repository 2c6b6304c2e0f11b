"""Where a layer of the sandbox does not hold: the real one, with the word for that layer taken out of its command."""

import json

import pytest
from click.testing import CliRunner

from mft_eval.cli import main
from mft_eval.judging import pool as pools
from mft_eval.sandbox.bubblewrap import server_commands

RECORD = {"problem_id": "p", "prompt": "Write f.", "entry_point": "f", "test": "assert f(2) == 4\n"}
ANSWER = json.dumps({"problem_id": "p", "sample_index": 0, "completion": "def f(x): return 2 * x"}) + "\n"
LAYER = "further namespaces"


@pytest.fixture
def score(tmp_path, monkeypatch):
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps(RECORD | {"reference": "def f(x):\n    return x + x\n"}) + "\n")

    def run(*options):
        def commands(bwrap_path):
            server, sandbox = server_commands(bwrap_path)
            return server, [word for word in sandbox if word != "--disable-userns"]

        monkeypatch.setattr(pools, "server_commands", commands)
        return CliRunner().invoke(main, ["score", str(problems), "-", *options], input=ANSWER)

    return run


def test_strict_refuses_by_the_layers_name(score):
    result = score()
    assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (1, 1, "")
    assert f"does not hold on this machine: {LAYER} missing" in result.stderr


def test_best_effort_goes_on_and_says_so(score):
    results = json.loads(score("--isolation", "best-effort").stdout)
    assert (results["settings"]["isolation"], results["settings"]["missing_layers"]) == ("best-effort", [LAYER])
    assert results["pass_at_k"] == {"pass@1": 1.0}
