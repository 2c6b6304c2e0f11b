"""EvalPlus's shape: inputs alone, judged by what the reference does, with its special cases."""

import json

import pytest
from click.testing import CliRunner

from mft_eval.cli import main
from mft_eval.problems.reading import read_problems


def record(name, entry_point, solution, base, plus, atol=0):
    return {
        "task_id": name,
        "prompt": '"""\nWrite a function.\nassert True\n"""',
        "entry_point": entry_point,
        "canonical_solution": solution,
        "base_input": base,
        "plus_input": plus,
        "atol": atol,
        "contract": "",
        "assertion": "assert True",
    }


# Record, a program that is right in another way, and one that is wrong on a plus input only.
CASES = {
    "tuples and any order": (
        record(
            "Mbpp/2",
            "similar_elements",
            "def similar_elements(a, b): return tuple(set(a) & set(b))",
            [[[1, 2], [2]]],
            [[[3, 4], [4, 3]]],
        ),
        "def similar_elements(a, b): return [x for x in a if (b + ()) and x in b][::-1]",
        "def similar_elements(a, b): return (2,)",
    ),
    "lists of tuples": (
        record(
            "Mbpp/63",
            "most",
            "def most(rows): return max(abs(a - b) for a, b in rows)",
            [[[[1, 5]]]],
            [[[[1, 9], [0, 1]]]],
        ),
        "def most(rows):\n    assert type(rows[0]) is tuple\n    return max(abs(b - a) for a, b in rows)",
        "def most(rows): return 4",
    ),
    "tuples all the way": (
        record(
            "Mbpp/580", "even", "def even(t): return tuple(x for x in t if x != 1)", [[[1, [2, 3]]]], [[[[4], 1, 6]]]
        ),
        "def even(t): return tuple(x for x in t if x != 1 and (type(x) is int or x + ()))",
        "def even(t): return ((2, 3),)",
    ),
    "complex numbers": (
        record("Mbpp/252", "turn", "import cmath\ndef turn(z): return cmath.polar(z)", [["(1+2j)"]], [["(3+4j)"]]),
        "def turn(z): import math; return (abs(z), math.atan2(z.imag, z.real))",
        "def turn(z): return (5 ** 0.5, 1.1071487177940904)",
    ),
    "floats within the tolerance": (
        record("Mbpp/1", "third", "def third(x): return x / 3", [[1.0]], [[2.0]], 1e-4),
        "def third(x): return x / 3 + 1e-5",
        "def third(x): return x / 3 + (x > 1) * 1e-3",
    ),
    "floats without one": (
        record("Mbpp/1", "third", "def third(x): return [x / 3]", [[1.0]], [[2.0]]),
        "def third(x): return [x / 3 + 1e-9]",
        "def third(x): return [x / 3 + (x > 1) * 1e-5]",
    ),
    "a match object or a boolean": (
        record(
            "Mbpp/737", "check_str", "import re\ndef check_str(s): return re.search('^[aeiou]', s)", [["a"]], [["x"]]
        ),
        "def check_str(s): return s[0] in 'aeiou'",
        "def check_str(s): return True",
    ),
    "infinities": (
        record("Mbpp/1", "most", "def most(xs): return max(xs)", [[[1]]], [[[float("inf"), 1]]]),
        "def most(xs): return sorted(xs)[-1]",
        "def most(xs): return 1",
    ),
    "another height": (
        record("Mbpp/581", "surface_Area", "def surface_Area(b, s): return 2 * b * s + b ** 2", [[3, 4]], [[4, 5]]),
        "import math\ndef surface_Area(b, s): return round(b * b + 2 * b * math.sqrt(b * b / 4 + s * s))",
        "def surface_Area(b, s): return 33",
    ),
    "digits from the right": (
        record(
            "Mbpp/558",
            "digit_distance_nums",
            "def digit_distance_nums(a, b): return sum(map(int, str(abs(a - b))))",
            [[1, 2]],
            [[23, 56], [9, 10]],
        ),
        "def digit_distance_nums(a, b):\n    a, b = str(a).zfill(9), str(b).zfill(9)\n"
        "    return sum(abs(int(x) - int(y)) for x, y in zip(a, b))",
        "def digit_distance_nums(a, b): return 1",
    ),
    "any zero": (
        {
            **record("HumanEval/32", "find_zero", "    return -xs[0] / xs[1]\n", [[[1, 2]]], [[[-4, 2]]], 1e-4),
            "prompt": "def find_zero(xs: list):\n",
        },
        "def find_zero(xs): return -xs[0] / xs[1] + 1e-6",
        "def find_zero(xs): return -0.5",
    ),
    "no plus input": (
        {**record("Mbpp/793", "last", "def last(x): return x[-1]", [[[1, 2]]], []), "plus_input": {}},
        "def last(x): return x.pop()",
        "def last(x): return 1",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_program_is_judged_on_every_input(judge_problem, tmp_path, name):
    line, right, wrong = CASES[name]
    path = tmp_path / "plus.jsonl"
    path.write_text(json.dumps(line) + "\n")
    (problem,) = read_problems(str(path)).problems
    assert judge_problem(problem, problem.reference).verdict == "passed"
    judgement = judge_problem(problem, right)
    assert (judgement.verdict, judgement.mode) == ("passed", "outside"), judgement
    assert judge_problem(problem, wrong).verdict == "wrong"


def test_arguments_that_a_program_changes_do_not_reach_the_reference(judge_problem, tmp_path):
    line = record("Mbpp/1", "total", "def total(x): return sum(x)", [[[1, 2]]], [[[3]]])
    path = tmp_path / "plus.jsonl"
    path.write_text(json.dumps(line) + "\n")
    (problem,) = read_problems(str(path)).problems
    assert judge_problem(problem, "def total(x):\n    x.clear()\n    return 0").verdict == "wrong"


# A program, as evalplus's samples hold it, and its verdicts on all inputs and on the base ones.
SAMPLES = {
    "def third(x): return x / 3": ("passed", "passed"),
    "def third(x): return x / 3 if x < 9 else 0": ("wrong", "passed"),
    "def third(x): return 3 * x": ("wrong", "wrong"),
    "def third(x):\n    while x == 9: pass\n    return x / 3": ("timeout", "passed"),
    "third = None": ("wrong", "wrong"),
}


def test_base_and_plus_scores_stand_apart(tmp_path):
    problems, samples, out = (tmp_path / name for name in ("plus.jsonl", "samples.jsonl", "out.json"))
    plain = {"problem_id": "own", "prompt": "Write f.", "entry_point": "f", "test": "assert f(1) == 2\n"}
    lines = [
        record("Mbpp/1", "third", "def third(x): return x / 3", [[3.0]], [[9.0]], 1e-6),
        record("Mbpp/2", "similar_elements", "def similar_elements(a): return (a,)", [[1]], {}),
        plain | {"reference": "def f(x): return 2 * x\n"},
    ]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    solutions = [("Mbpp/1", program) for program in SAMPLES]
    solutions += [("Mbpp/2", "def similar_elements(a): return [a]"), ("own", "def f(x): return 2")]
    samples.write_text("".join(json.dumps({"task_id": name, "solution": text}) + "\n" for name, text in solutions))
    arguments = ["score", str(problems), str(samples), str(out), "--timeout", "1"]
    scored = CliRunner().invoke(main, arguments)
    assert scored.exit_code == 0, scored.output
    results = json.loads(out.read_text())
    first, _, own = results["problems"]
    found = [(sample["verdict"], sample["base_verdict"]) for sample in first["samples"]]
    assert found == list(SAMPLES.values())
    assert [problem["num_correct"] for problem in results["problems"]] == [1, 1, 1]
    assert [problem["num_base_correct"] for problem in results["problems"]] == [3, 1, None]
    assert own["samples"][0]["base_verdict"] is None
    assert results["pass_at_k"] == {"pass@1": pytest.approx((1 / 5 + 1 + 1) / 3)}
    assert results["base"]["pass_at_k"] == {"pass@1": pytest.approx((3 / 5 + 1) / 2)}
    assert "pass@1, base tests alone: 0.8000" in scored.stderr
    shown = CliRunner().invoke(main, ["show", str(out)]).stdout
    assert [line.split()[:4] for line in shown.splitlines() if line.startswith("base")] == [
        ["base", "tests", "alone", "2"]
    ]
