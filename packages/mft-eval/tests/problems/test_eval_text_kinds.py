"""Translation and explanation: what is asked, what reference and null answers score, and what is measured beside."""

import ast
import json
import shutil

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mft_eval.cli import main
from mft_eval.generations.extraction import without_fences
from mft_eval.problems.explaining import explaining_problem, regenerating_problem
from mft_eval.problems.reading import read_problems
from mft_eval.scoring.text_similarity import edit_similarity

pytestmark = pytest.mark.whole

JAVASCRIPT = {
    "task_id": "JavaScript/2",
    "prompt": "/* Given a positive number, return\n  its decimal part. */\nconst truncateNumber = (number) => {\n",
    "declaration": "\nconst truncateNumber = (number) => {\n",
    "canonical_solution": "  return number % 1.0;\n}\n\n",
    "test": "const testIt = () => {\n  console.assert(truncateNumber(3.5) === 0.5)\n"
    "  console.assert(Math.abs(truncateNumber(1.33) - 0.33) < 1e-6)\n}\n\ntestIt()\n",
}
CPP = {
    "task_id": "CPP/2",
    "prompt": "/* its decimal part */\n#include<math.h>\nfloat truncate_number(float number){\n",
    "declaration": "#include<math.h>\nfloat truncate_number(float number){\n",
    "canonical_solution": "    return number - int(number);\n}\n",
    "test": "#undef NDEBUG\n#include<assert.h>\nint main(){\n    assert (truncate_number(3.5) == 0.5);\n"
    "    assert (abs(truncate_number(1.33) - 0.33) < 1e-4);\n}\n",
}


def run(*arguments, stdin=None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def lines_of(*answers):
    keys = ("problem_id", "sample_index", "completion")
    return "".join(json.dumps(dict(zip(keys, answer, strict=True))) + "\n" for answer in answers)


def verdicts(results):
    return [[sample["verdict"] == "passed" for sample in problem["samples"]] for problem in results["problems"]]


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("g++")), reason="no node or no g++ on this machine")
def test_translations_run_in_the_language_that_was_asked_for(tmp_path):
    problems = tmp_path / "x.jsonl"
    problems.write_text("".join(json.dumps(record) + "\n" for record in (JAVASCRIPT, CPP)))
    asked = [json.loads(line) for line in run("problems", problems, "--kind", "translate").stdout.splitlines()]
    for line, record in zip(asked, (JAVASCRIPT, CPP), strict=True):
        content = line["messages"][0]["content"]
        assert "return number % 1.0" in content
        assert "```python" in content
        assert record["declaration"].strip() in content
        assert "decimal part. */" not in content
        assert "/* its" not in content
    answers = [
        (record["task_id"], index, f"```\n{answer}```")
        for record in (JAVASCRIPT, CPP)
        for index, answer in enumerate((record["declaration"] + record["canonical_solution"], ""))
    ]
    results = json.loads(run("score", problems, "-", "--kind", "translate", stdin=lines_of(*answers)).stdout)
    assert verdicts(results) == [[True, False]] * 2
    first, null = (sample["measures"]["chrf"] for sample in results["problems"][0]["samples"])
    assert 0 <= null < first <= 100
    assert set(results["measures"]) == {"chrf"}


def test_a_source_of_our_own_shape_is_translated(tmp_path):
    record = {
        "problem_id": "p",
        "prompt": "",
        "source": {"language": "javascript", "code": "const twice = x => 2 * x;"},
        "entry_point": "twice",
        "test": "assert twice(2) == 4\n",
        "reference": "def twice(x):\n    return 2 * x\n",
    }
    problems = tmp_path / "own.jsonl"
    problems.write_text(json.dumps(record) + "\n")
    (line,) = map(json.loads, run("problems", problems, "--kind", "translate").stdout.splitlines())
    assert "JavaScript code into Python" in line["messages"][0]["content"]
    answers = lines_of(("p", 0, record["reference"]), ("p", 1, ""))
    results = json.loads(run("score", problems, "-", "--kind", "translate", stdin=answers).stdout)
    assert verdicts(results) == [[True, False]]
    assert [sample["measures"]["chrf"] for sample in results["problems"][0]["samples"]] == [100.0, 0.0]
    problems.write_text(json.dumps(record | {"source": "x"}) + "\n")
    wrong = run("problems", problems)
    assert (wrong.exit_code, '"source" is not an object' in wrong.stderr) == (1, True)


def test_nothing_of_humaneval_itself_is_a_translation():
    result = run("problems", "humaneval", "--kind", "translate")
    assert (result.exit_code, "no problem can be made into the kind translate" in result.stderr) == (1, True)


def test_what_is_to_be_explained_has_no_words_of_its_own():
    made = [made for problem in read_problems("humaneval").problems if (made := explaining_problem(problem))]
    assert len(made) > 150
    for problem in made:
        code = problem.messages[0]["content"].partition("```python\n")[2].removesuffix("```")
        assert ast.get_docstring(ast.parse(code).body[-1]) is None
        assert problem.docstring.splitlines()[0] not in code


def test_programs_from_explanations_score_all_and_null_answers_none(tmp_path):
    chosen = [p for p in read_problems("humaneval").problems[7::20] if explaining_problem(p)]
    words = {problem.problem_id: explaining_problem(problem).docstring for problem in chosen}
    explanations = tmp_path / "explanations.jsonl"
    explanations.write_text(lines_of(*((name, 0, text) for name, text in words.items())))
    asked = run("problems", "humaneval", "--kind", "explain", "--explanations", explanations).stdout.splitlines()
    assert len(asked) == len(chosen)
    for line in map(json.loads, asked):
        code = line["messages"][0]["content"].partition("```python\n")[2].removesuffix("```")
        shown = ast.get_docstring(ast.parse(code).body[-1])
        assert shown.splitlines()[0].strip() == words[line["problem_id"]].splitlines()[0].strip()
    answers = [
        (problem.problem_id, index, answer)
        for problem in chosen
        for index, answer in enumerate((f"```python\n{problem.reference}```", "", "    pass\n"))
    ]
    score = ("score", "humaneval", "-", "--kind", "explain", "--partial")
    results = json.loads(run(*score, "--explanations", explanations, stdin=lines_of(*answers)).stdout)
    assert verdicts(results) == [[True, False, False]] * len(chosen)
    assert results["measures"]["chrf"] == 100
    assert len(results["settings"]["explanations_sha256"]) == 64
    missing = run(*score, stdin=lines_of(*answers))
    assert (missing.exit_code, "give --explanations" in missing.stderr) == (1, True)


def test_an_explanation_hands_on_no_code_and_is_no_longer_than_the_docstring():
    problem = read_problems("humaneval").problems[2]
    body = problem.reference.splitlines()[-1]
    told = f"It takes the part.\n```python\n{problem.reference}\n```\n{body}\nNothing else. {'x' * 9999}"
    made = regenerating_problem(problem, told)
    assert made.explanation.startswith("It takes the part.\nNothing else.")
    assert len(made.explanation) <= len(made.docstring)
    assert body not in made.prompt_code
    assert ast.get_docstring(ast.parse(made.prompt_code).body[-1]) == made.explanation
    quotes = regenerating_problem(problem, 'end """ + \\ quotes')
    ast.parse(quotes.prompt_code)


def test_text_outside_of_fences():
    assert without_fences("a\n```py\nb\n```\nc\n~~~\nd") == "a\nc"


def longest_common(left, right):
    row = [0] * (len(right) + 1)
    for mine in left:
        diagonal = 0
        for place, other in enumerate(right, start=1):
            above = row[place]
            row[place] = diagonal + 1 if mine == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


@given(st.text("abc \n"), st.text("abc \n"))
def test_edit_similarity_is_that_of_the_plain_recurrence(left, right):
    expected = 2 * longest_common(left, right) / (len(left) + len(right)) if left or right else 1.0
    assert edit_similarity(left, right) == pytest.approx(expected)


def test_edit_similarity_by_hand():
    assert edit_similarity("kitten", "sitting") == pytest.approx(8 / 13)


def test_infilling_measures_stand_beside_the_verdict():
    from mft_eval.problems.infilling import hidden_lines, infilling_problem

    problem = infilling_problem(read_problems("humaneval").problems[0])
    hidden = hidden_lines(problem)
    answers = lines_of((problem.problem_id, 0, hidden), (problem.problem_id, 1, ""))
    results = json.loads(run("score", "humaneval", "-", "--kind", "fim", "--partial", stdin=answers).stdout)
    same, null = (sample["measures"] for sample in results["problems"][0]["samples"])
    assert same == {"edit_similarity": 1.0, "exact_match": 1.0}
    assert null == {"edit_similarity": 0.0, "exact_match": 0.0}
    assert results["measures"] == {"edit_similarity": 0.5, "exact_match": 0.5}
