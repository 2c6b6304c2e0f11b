"""Problems in other languages, contest problems, and all fields of our own shape."""

import base64
import json
import pickle
import shutil
import zlib

import pytest

from mft_eval.errors import EvalError
from mft_eval.generations.reading import Completion
from mft_eval.judging.judgement import Limits
from mft_eval.problems.problem import InputOutputTest
from mft_eval.problems.program import make_program
from mft_eval.problems.reading import read_problems

LIMITS = Limits(5, 512)
HUMANEVAL_X_CPP = {
    "task_id": "CPP/0",
    "prompt": "/*\nDoubles each.\n*/\n#include<vector>\nusing namespace std;\nvector<int> twice(vector<int> xs){\n",
    "declaration": "vector<int> twice(vector<int> xs){\n",
    "canonical_solution": "    for (int &x : xs) { x *= 2; }\n    return xs;\n}\n",
    "test": "#undef NDEBUG\n#include<assert.h>\nint main(){\n    assert (twice({1, 2}) == vector<int>({2, 4}));\n}\n",
}
HUMANEVAL_X_JS = {
    "task_id": "JavaScript/0",
    "prompt": "/* Doubles each.\n*/\nconst twice = (xs) => {\n",
    "declaration": "const twice = (xs) => {\n",
    "canonical_solution": "  return xs.map((x) => { return 2 * x; })\n}\n\n",
    "test": "const testTwice = () => {\n  console.assert(twice([1, 2])[1] === 4)\n}\n\ntestTwice()\n",
}
MULTIPLE_CPP = {
    "name": "HumanEval_23_strlen",
    "language": "cpp",
    "prompt": "#include<assert.h>\n#include<string>\n// Length.\nlong string_length(std::string string) {\n",
    "tests": '}\nint main() {\n    auto candidate = string_length;\n    assert(candidate(("asdf")) == (4));\n}\n',
    "stop_tokens": ["\n}"],
}
MULTIPLE_JS = {
    "name": "HumanEval_23_strlen",
    "language": "js",
    "prompt": "//Length.\nfunction strlen(string){\n",
    "tests": "const assert = require('node:assert');\nfunction test() {\n"
    "  assert.deepEqual(strlen('asdf'), 4);\n}\ntest();",
    "stop_tokens": ["\nfunction "],
}
CALLS = [{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]
LIVECODEBENCH = {
    "question_id": "abc",
    "question_content": "Add.",
    "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "5 2\n", "output": "7\n", "testtype": "stdin"}]),
    "platform": "atcoder",
    "difficulty": "easy",
}
METHOD = {
    **LIVECODEBENCH,
    "public_test_cases": json.dumps(CALLS),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(CALLS)))).decode(),
    "starter_code": "class Solution:\n    def total(self, xs: List[int], x: int) -> int:\n        ",
    "metadata": '{"func_name": "total"}',
}
APPS = {
    "problem_id": 5,
    "question": "Add.",
    "input_output": json.dumps({"inputs": ["1\n2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}),
    "solutions": json.dumps(["print(int(input()) + int(input()))"]),
    "difficulty": "introductory",
}
APPS_METHOD = {
    **APPS,
    "input_output": json.dumps({"fn_name": "total", "inputs": [[[1, 2]]], "outputs": [[3]]}),
    "solutions": json.dumps(["class Solution:\n    def total(self, xs): return sum(xs)"]),
}
OWN_CPP = {
    "problem_id": "own/cpp",
    "prompt": "Double the number.",
    "language": "cpp",
    "cases": [{"input": "4\n", "output": "8\n"}],
    "reference": "#include <iostream>\nint main() { int x; std::cin >> x; std::cout << 2 * x; }",
    "tags": ["b", "a", "b"],
    "timeout_seconds": 4,
}
OWN_SETUP = {
    "problem_id": "own/setup",
    "prompt": "def f(x):\n",
    "setup": "BASE = 10\n\n\n",
    "entry_point": "f",
    "test": "assert f(1) == BASE + 1\n",
    "reference": "def f(x):\n    return BASE + x\n",
}
# Record, a right completion, a wrong one.
SHAPES = {
    "HumanEval-X, C++": (HUMANEVAL_X_CPP, "    for (auto &x : xs) x += x;\n    return xs;\n}\n", "    return xs;\n}"),
    "HumanEval-X, JavaScript": (
        HUMANEVAL_X_JS,
        "```js\nconst twice = (xs) => xs.map((x) => x + x);\n```",
        "  return xs;\n}\n",
    ),
    "MultiPL-E, C++": (MULTIPLE_CPP, "    return string.size();\n}\n\nint main() {", "    return 0;\n}"),
    "MultiPL-E, JavaScript": (MULTIPLE_JS, "  return string.length;\n}\nfunction g() {", "  return 0;\n}"),
    "LiveCodeBench": (LIVECODEBENCH, "```python\nprint(sum(map(int, input().split())))\n```", "print(3)"),
    "LiveCodeBench, a method": (
        METHOD,
        "```python\nclass Solution:\n    def total(self, xs, x): return sum(xs) + x\n```",
        "class Solution:\n    def total(self, xs, x): return x",
    ),
    "APPS": (APPS, "a = int(input())\nprint(a + int(input()))", "print(3)"),
    "APPS, a method": (
        APPS_METHOD,
        "class Solution:\n    def total(self, xs):\n        return xs[0] + xs[1]",
        "class Solution:\n    def total(self, xs): return 4",
    ),
    "ours in C++": (
        OWN_CPP,
        '```cpp\n#include <cstdio>\nint main() { int x; scanf("%d", &x); printf("%d", x + x); }\n```',
        "int main() {}",
    ),
    "ours with a setup": (OWN_SETUP, "    return x + BASE\n", "    BASE = 0\n    return x\n"),
}
COMMANDS = {"cpp": "g++", "javascript": "node"}


def read(tmp_path, *records):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_problems(str(path)).problems


@pytest.mark.parametrize("name", SHAPES)
def test_right_passes_and_wrong_does_not_in_the_shape_of(judge_problem, tmp_path, name):
    record, right, wrong = SHAPES[name]
    (problem,) = read(tmp_path, record)
    if problem.language in COMMANDS and shutil.which(COMMANDS[problem.language]) is None:
        pytest.skip(f"no {COMMANDS[problem.language]} on this machine")
    judgement = judge_problem(problem, make_program(Completion(right), problem), LIMITS)
    assert judgement.verdict == "passed", judgement
    for bad in (wrong, "", "I cannot."):
        judgement = judge_problem(problem, make_program(Completion(bad), problem), LIMITS)
        assert judgement.verdict in ("wrong", "exception"), judgement


def test_fields_of_ours_are_read(tmp_path):
    cpp, setup = read(tmp_path, OWN_CPP, OWN_SETUP)
    assert (cpp.language, cpp.tags, cpp.timeout_seconds) == ("cpp", ("a", "b"), 4)
    assert cpp.test == InputOutputTest((("4\n", "8\n"),))
    assert setup.test.preamble == "BASE = 10\n\n\n"
    assert setup.prompt_code == "BASE = 10\n\n\ndef f(x):\n"


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (OWN_CPP | {"language": "cobol"}, '"language" is "cobol"'),
        (OWN_CPP | {"timeout_seconds": 0}, '"timeout_seconds" is not a number from 0.1 to 3600'),
        (OWN_CPP | {"timeout_seconds": True}, '"timeout_seconds" is not a number'),
        (OWN_CPP | {"tags": "a"}, '"tags" is not a list of texts'),
        (OWN_CPP | {"cases": []}, '"cases" is not a list of objects'),
        (OWN_CPP | {"cases": [{"input": 1, "output": ""}]}, '"cases" is not a list of objects'),
        (OWN_CPP | {"test": "x"}, 'either "test" or "cases"'),
        (MULTIPLE_CPP | {"language": "r"}, 'the language is "r"'),
        (MULTIPLE_CPP | {"prompt": "int x;"}, "does not end in the head of a function"),
        (HUMANEVAL_X_CPP | {"task_id": "Perl/1"}, 'the language is "Perl"'),
        (APPS | {"input_output": "{"}, '"input_output" is not JSON'),
        (APPS | {"input_output": '{"inputs": [], "outputs": []}'}, "no inputs and outputs of one length"),
        (LIVECODEBENCH | {"private_test_cases": "%"}, "cannot be unpacked"),
        (LIVECODEBENCH | {"private_test_cases": '[{"input": 1}]'}, "a test case has no text"),
        (METHOD | {"private_test_cases": json.dumps([CALLS[0] | {"input": "x"}])}, "a test case is not JSON"),
        (METHOD | {"metadata": "[]"}, '"None" is not the name of a method'),
        (
            LIVECODEBENCH | {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()},
            "cannot be unpacked",
        ),
    ],
)
def test_a_bad_record_is_named(tmp_path, record, message, capsys):
    with pytest.raises(EvalError, match=message) as caught:
        read(tmp_path, record)
    assert "problems.jsonl line 1" in caught.value.message
    assert capsys.readouterr().out == ""
