"""Other kinds of task made from a problem: what a reference and a null answer score."""

import ast
import json
import shutil

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_eval.cli import main
from mft_eval.generations.extraction import extract_infill
from mft_eval.problems.infilling import hidden_lines, infilling_problem
from mft_eval.problems.mutants import mutants
from mft_eval.problems.reading import read_problems

pytestmark = pytest.mark.whole

SOURCE = '''def g(x):
    return x + 1


def f(xs):
    """Text."""
    total = 0
    for x in xs:
        if x > 2 and x != 5:
            total += g(x)
    return total
'''


def run(*arguments, stdin=None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def generations(lines):
    return "".join(
        json.dumps({"problem_id": problem_id, "sample_index": index, "completion": completion}) + "\n"
        for problem_id, index, completion in lines
    )


def test_every_hidden_span_of_humaneval_is_whole_and_put_back():
    made = [infilling_problem(problem) for problem in read_problems("humaneval").problems]
    assert None not in made
    assert sum(bool(problem.suffix_code) for problem in made) > 80
    for problem in made:
        assert problem.prompt_code + hidden_lines(problem) + problem.suffix_code == problem.reference
        assert infilling_problem(problem) == problem or problem.suffix_code is not None


def test_hidden_lines_score_all_and_null_answers_none():
    made = [infilling_problem(problem) for problem in read_problems("humaneval").problems][3::8]
    lines = []
    for problem in made:
        hidden = hidden_lines(problem)
        lines += [(problem.problem_id, 0, f"```python\n{hidden}```"), (problem.problem_id, 1, hidden)]
        lines += [(problem.problem_id, 2, ""), (problem.problem_id, 3, "    pass\n")]
    result = run("score", "humaneval", "-", "--kind", "fim", "--partial", stdin=generations(lines))
    assert result.exit_code == 0, result.output
    passed = {
        (problem["problem_id"], sample["sample_index"])
        for problem in json.loads(result.stdout)["problems"]
        for sample in problem["samples"]
        if sample["verdict"] == "passed"
    }
    assert passed == {(problem.problem_id, index) for problem in made for index in (0, 1)}


def test_prompts_of_both_styles_have_the_hole():
    chat = [json.loads(line) for line in run("problems", "humaneval", "--kind", "fim").stdout.splitlines()]
    raw = run("problems", "humaneval", "--kind", "fim", "--style", "completion").stdout.splitlines()
    assert len(chat) == len(raw) == 164
    for shown, line in zip(chat, map(json.loads, raw), strict=True):
        assert "# <fill in here>" in shown["messages"][0]["content"]
        assert line["prompt"].strip().splitlines()[-1] in shown["messages"][0]["content"]
        assert set(line) == {"problem_id", "prompt", "suffix"}


@pytest.mark.parametrize(
    "completion",
    [
        "    y = 1\n    z = 2\n",
        "y = 1\nz = 2",
        "```python\ny = 1\nz = 2\n```",
        "    y = 1\n    z = 2\n\n\ndef g(): pass\n",
    ],
)
def test_an_answer_gets_the_indent_of_its_gap(completion):
    assert extract_infill(completion, "def f(x):\n    a = 1\n") == "    y = 1\n    z = 2\n"


def test_a_mutant_differs_in_one_place():
    found = list(mutants(SOURCE, "f"))
    original = ast.unparse(ast.parse(SOURCE))
    assert len(found) == len(set(found)) == 11
    for mutant in found:
        changed = [pair for pair in zip(original.splitlines(), mutant.splitlines(), strict=True) if pair[0] != pair[1]]
        assert len(changed) == 1
    # The function that is tested comes first.
    assert all("return x + 1" in mutant for mutant in found[:8])


@settings(deadline=None)
@given(st.integers(0, 100))
def test_mutants_depend_on_the_seed_alone(seed):
    assert list(mutants(SOURCE, "f", seed)) == list(mutants(SOURCE, "f", seed))
    assert set(mutants(SOURCE, "f", seed)) == set(mutants(SOURCE, "f"))


def test_a_program_to_repair_is_wrong_as_it_is_shown(tmp_path):
    problems = tmp_path / "problems.jsonl"
    record = {"problem_id": "p", "prompt": "Write f.", "entry_point": "f", "test": "assert f([1, 3, 5, 6]) == 11\n"}
    problems.write_text(json.dumps(record | {"reference": SOURCE}) + "\n")
    (line,) = run("problems", problems, "--kind", "fix").stdout.splitlines()
    shown = json.loads(line)["messages"][0]["content"].partition("```")[2]
    answers = generations([("p", 0, f"```{shown}"), ("p", 1, f"```python\n{SOURCE}```")])
    results = json.loads(run("score", problems, "-", stdin=answers).stdout)
    assert [sample["verdict"] == "passed" for sample in results["problems"][0]["samples"]] == [False, True]


def test_a_bug_that_the_source_brings_is_the_one_to_repair(tmp_path):
    problems = tmp_path / "pack.jsonl"
    record = {
        "task_id": "Python/0",
        "prompt": "def f(x):\n",
        "entry_point": "f",
        "canonical_solution": "    return x\n",
        "buggy_solution": "    return -x\n",
        "test": "def check(f):\n    assert f(1) == 1\n\ncheck(f)",
    }
    problems.write_text(json.dumps(record) + "\n")
    assert "return -x" in run("problems", problems, "--kind", "fix").stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_a_bug_in_another_language_is_shown_and_its_repair_scored(tmp_path):
    """HumanEvalPack's shape, which has the fields of HumanEval's and of HumanEval-X's."""
    problems = tmp_path / "pack.jsonl"
    head = "#include<math.h>\nfloat part(float number){\n"
    record = {
        "task_id": "CPP/2",
        "prompt": f"/* The decimal part. */\n{head}",
        "declaration": head,
        "entry_point": "part",
        "canonical_solution": "    return number - int(number);\n}\n",
        "buggy_solution": "    return number + int(number);\n}\n",
        "test": "#undef NDEBUG\n#include<assert.h>\nint main(){\n    assert (part(3.5) == 0.5);\n}\n",
    }
    problems.write_text(json.dumps(record) + "\n")
    (line,) = run("problems", problems, "--kind", "fix").stdout.splitlines()
    shown = json.loads(line)["messages"][0]["content"]
    assert shown.startswith("This C++ code has a bug.")
    wrong = shown.partition("```cpp\n")[2].removesuffix("```")
    assert "return number + int(number)" in wrong
    repaired = wrong.replace("number +", "number -")
    answers = generations([("CPP/2", 0, f"```cpp\n{wrong}```"), ("CPP/2", 1, f"```cpp\n{repaired}```")])
    results = json.loads(run("score", problems, "-", stdin=answers).stdout)
    assert [sample["verdict"] for sample in results["problems"][0]["samples"]] == ["wrong", "passed"]


def test_what_cannot_be_made_into_a_kind_is_one_clear_error(tmp_path):
    problems = tmp_path / "problems.jsonl"
    cases = [{"input": "", "output": "1"}]
    problems.write_text(json.dumps({"problem_id": "p", "prompt": "Print 1.", "cases": cases, "reference": "print(1)"}))
    result = run("problems", problems, "--kind", "fim")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "no problem can be made into the kind fim" in result.stderr


def test_unit_tests_are_asked_for_and_scored_by_mutants(tmp_path):
    problems = tmp_path / "problems.jsonl"
    own = "assert f([1, 3, 5, 6]) == 11\nassert f([2, 3]) == 4\nassert f([5]) == 0\n"
    record = {"problem_id": "p", "prompt": "Write f.", "entry_point": "f", "test": own, "reference": SOURCE}
    problems.write_text(json.dumps(record) + "\n")
    (line,) = map(json.loads, run("problems", problems, "--kind", "tests").stdout.splitlines())
    assert SOURCE.strip() in line["messages"][0]["content"]
    assert own not in line["messages"][0]["content"]
    answers = generations([("p", 0, f"```python\n{own}```"), ("p", 1, ""), ("p", 2, "assert f([]) == 1")])
    results = json.loads(run("score", problems, "-", "--kind", "tests", stdin=answers).stdout)
    assert results["problems_source"]["name"] == "problems.jsonl (tests)"
    assert [sample["verdict"] for sample in results["problems"][0]["samples"]] == ["passed", "wrong", "wrong"]
    assert results["problems"][0]["samples"][2]["detail"] == "fails on the reference"


def test_the_tests_of_humaneval_score_all_and_null_answers_none():
    """Each problem's own test, as an answer to the request for tests."""
    chosen = read_problems("humaneval").problems[5::20]
    lines = [
        (problem.problem_id, index, answer)
        for problem in chosen
        for index, answer in enumerate(
            (f"```python\n{problem.test.preamble}{problem.test.script}```", "", "assert True")
        )
    ]
    result = run("score", "humaneval", "-", "--kind", "tests", "--partial", stdin=generations(lines))
    assert result.exit_code == 0, result.output
    problems = json.loads(result.stdout)["problems"]
    verdicts = {tuple(sample["verdict"] == "passed" for sample in problem["samples"]) for problem in problems}
    assert verdicts == {(True, False, False)}
    assert len(problems) == len(chosen)
