"""Java and Rust, in HumanEval-X's shape, built and run by the toolchains of the machine."""

import json

import pytest
from click.testing import CliRunner

from mft_eval.cli import main
from mft_eval.judging.languages import LANGUAGES, toolchain_path

pytestmark = pytest.mark.whole

JAVA_HEAD = "import java.util.*;\n\nclass Solution {\n    /** Adds. */\n    public int add(int x, int y) {\n"
RECORDS = {
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


@pytest.mark.parametrize("language", RECORDS)
def test_right_programs_pass_with_a_mark_and_others_do_not(tmp_path, language):
    if toolchain_path(LANGUAGES[language]) is None:
        pytest.skip(f"no {LANGUAGES[language].command} on this machine")
    record = RECORDS[language]
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps(record) + "\n")
    lines = [
        {"problem_id": record["task_id"], "sample_index": index, "completion": answer}
        for index, answer in enumerate(ANSWERS[language])
    ]
    generations = "".join(json.dumps(line) + "\n" for line in lines)
    scored = CliRunner().invoke(main, ["score", str(problems), "-", "--timeout", "20"], input=generations)
    samples = json.loads(scored.stdout)["problems"][0]["samples"]
    assert [sample["verdict"] == "passed" for sample in samples] == list(ANSWERS[language].values()), samples
    assert all(sample["untrusted"] for sample in samples if sample["verdict"] == "passed")
