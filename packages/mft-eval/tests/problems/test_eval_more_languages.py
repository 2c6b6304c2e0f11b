"""Java, Rust and Go, in HumanEval-X's and MultiPL-E's shapes, built and run by the toolchains of the machine."""

import json

import pytest
from click.testing import CliRunner

from mft_eval.cli import main
from mft_eval.judging.languages import LANGUAGES, toolchain_path

pytestmark = pytest.mark.whole

JAVA_HEAD = "import java.util.*;\n\nclass Solution {\n    /** Adds. */\n    public int add(int x, int y) {\n"
GO_HEAD = 'import (\n    "math"\n    "fmt"\n)\n\n// Adds.\nfunc Add(x int, y int) int {\n'
RECORDS = {
    "go": {
        "task_id": "Go/53",
        "prompt": GO_HEAD,
        "import": 'import (\n    "math"\n    "fmt"\n)\n',
        "declaration": "\nfunc Add(x int, y int) int {\n",
        "canonical_solution": "    return x + y\n}\n\n",
        "test_setup": 'package main\n\nimport (\n    "testing"\n    "math/rand"\n'
        '    "github.com/stretchr/testify/assert"\n)\n',
        "test": "func TestAdd(t *testing.T) {\n    assert := assert.New(t)\n    assert.Equal(1, Add(0, 1))\n"
        "    assert.Equal(5, Add(2, 3))\n    for i := 0; i < 9; i++ {\n        x := rand.Intn(1000)\n"
        "        assert.Equal(x+3, Add(x, 3))\n    }\n}\n",
    },
    "go, MultiPL-E": {
        "name": "HumanEval_53_add",
        "language": "go_test.go",
        "prompt": 'package add_test\n\nimport (\n    "testing"\n    "fmt"\n)\n\n'
        "// Adds.\nfunc add(x int, y int) int {\n",
        "tests": "func TestAdd(t *testing.T) {\n  candidate := add\n\ttype test struct {\n\t\tactual   int\n"
        "\t\texpected int\n\t}\n   tests := []test{\n     { actual: candidate(0, 1), expected: 1 },\n"
        "     { actual: candidate(2, 3), expected: 5 },\n   }\n\n\tfor i, tc := range tests {\n"
        '\t\tt.Run(fmt.Sprintf("test num % d", i), func(t *testing.T) {\n'
        '\t\t\tif fmt.Sprintf("%v", tc.actual) != fmt.Sprintf("%v", tc.expected) {\n'
        "\t\t\t\tt.Errorf(\"expected '%v', got '%v'\", tc.expected, tc.actual)\n\t\t\t}\n\t\t})\n\t}\n}\n",
        "stop_tokens": ["\nfunc", "struct", "\n// "],
    },
    "java, MultiPL-E": {
        "name": "HumanEval_53_add",
        "language": "java",
        "prompt": "import java.util.*;\nimport java.lang.reflect.*;\nimport org.javatuples.*;\n"
        "import java.security.*;\n"
        "import java.math.*;\nimport java.io.*;\nimport java.util.stream.*;\nclass Problem {\n    // Adds.\n"
        "    public static long add(long x, long y) {\n",
        "tests": "    }\n    public static void main(String[] args) {\n    assert(add((0l), (1l)) == (1l));\n"
        "    assert(add((2l), (3l)) == (5l));\n    }\n\n}\n",
        "stop_tokens": ["\n    }\n"],
    },
    "rust, MultiPL-E": {
        "name": "HumanEval_53_add",
        "language": "rs",
        "prompt": "/// Adds.\nfn add(x: isize, y: isize) -> isize {\n",
        "tests": "}\n\nfn main() {\n    let candidate = add;\n    assert_eq!(candidate(0, 1), 1);\n"
        "    assert_eq!(candidate(2, 3), 5);\n}\n",
        "stop_tokens": ["\n}"],
    },
    "java": {
        "task_id": "Java/53",
        "prompt": JAVA_HEAD,
        "declaration": JAVA_HEAD,
        "canonical_solution": "        return x + y;\n    }\n}",
        "test": "public class Main {\n    public static void main(String[] args) {\n"
        "        Solution s = new Solution();\n"
        "        List<Boolean> correct = Arrays.asList(s.add(0, 1) == 1, s.add(2, 3) == 5);\n"
        "        if (correct.contains(false)) {\n            throw new AssertionError();\n        }\n    }\n}",
    },
    "rust": {
        "task_id": "Rust/53",
        "prompt": "\nfn main(){\n }\n\nuse std::collections::HashMap;\nuse rand::Rng;\nuse md5;\n/* Adds. */\n"
        "fn add(x:i32, y:i32) -> i32{\n\n",
        "declaration": "\nfn add(x:i32, y:i32) -> i32{\n\n",
        "canonical_solution": "    return x + y;\n}\n",
        "test": "\n#[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n    fn test_add() {\n"
        "        assert!(add(0, 1) == 1);\n        assert!(add(2, 3) == 5);\n    }\n}\n",
    },
}
ANSWERS = {
    "go": {
        "    return y + x\n}\n": True,
        '```go\npackage main\n\nimport "strings"\n\n'
        'func Add(x, y int) int { return x + len(strings.Repeat("a", y)) }\n```': True,
        "    return int(math.Round(float64(x))) + y\n}\n": True,
        "    return x - y\n}\n": False,
        "    os.Exit(0)\n    return 0\n}\n": False,
        "    panic(1)\n}\n": False,
        "": False,
    },
    "go, MultiPL-E": {
        "    return y + x\n}\n": True,
        "    return x + y": True,
        "    return x - y\n}\n": False,
        "    os.Exit(0)\n    return 0\n}\n": False,
    },
    "java, MultiPL-E": {
        "        return y + x;\n    }\n": True,
        "        return x + y;": True,
        "        return x - y;\n    }\n": False,
        "        System.exit(0);\n        return 0;\n    }\n": False,
    },
    "rust, MultiPL-E": {
        "    y + x\n}\n": True,
        "    x + y": True,
        "    x - y\n}\n": False,
        "    std::process::exit(0)\n}\n": False,
    },
    "java": {
        "        return y + x;\n    }\n}": True,
        "```java\npublic int add(int x, int y) { return x + y; }\n```": True,
        "        return x - y;\n    }\n}": False,
        "        System.exit(0);\n        return 0;\n    }\n}": False,
        "": False,
    },
    "rust": {
        "    y + x\n}\n": True,
        "```rust\nfn add(x: i32, y: i32) -> i32 { y + x }\n```": True,
        "    x - y\n}\n": False,
        "    std::process::exit(0)\n}\n": False,
        "": False,
    },
}


def test_a_go_test_without_tests_is_refused(tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps(RECORDS["go"] | {"test": "func Check() {}\n"}) + "\n")
    result = CliRunner().invoke(main, ["problems", str(problems)])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"in {problems} line 1" in result.stderr


@pytest.mark.parametrize("shape", RECORDS)
def test_right_programs_pass_with_a_mark_and_others_do_not(tmp_path, shape):
    language = LANGUAGES[shape.partition(",")[0]]
    if toolchain_path(language) is None:
        pytest.skip(f"no {language.command} on this machine")
    record = RECORDS[shape]
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps(record) + "\n")
    lines = [
        {"problem_id": record.get("task_id") or record["name"], "sample_index": index, "completion": answer}
        for index, answer in enumerate(ANSWERS[shape])
    ]
    generations = "".join(json.dumps(line) + "\n" for line in lines)
    scored = CliRunner().invoke(main, ["score", str(problems), "-", "--timeout", "20"], input=generations)
    samples = json.loads(scored.stdout)["problems"][0]["samples"]
    assert [sample["verdict"] == "passed" for sample in samples] == list(ANSWERS[shape].values()), samples
    assert all(sample["untrusted"] for sample in samples if sample["verdict"] == "passed")
