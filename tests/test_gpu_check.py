"""The check of a machine with a GPU: its dry run, and what it says where it cannot run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def gpu_check(*arguments):
    """The command's outcome, run by this Python."""
    command = [sys.executable, ROOT / "tools" / "gpu_check.py", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_the_dry_run_measures_every_loop_and_says_what_it_skips():
    done = gpu_check("--tiny", "--device", "cpu", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["failures"]) == (0, [])
    assert report["machine"]["device"] == "cpu"
    figures = {(each["model"], each["method"], each["loop"]): each for each in report["figures"]}
    sizes, methods, loops = (sorted(set(names)) for names in zip(*figures, strict=True))
    assert (sizes, methods) == (["tiny-1B", "tiny-7B"], ["full", "lora", "qlora"])
    assert (loops, len(figures)) == (["hand loop", "mft-train"], 12)
    for size, method, _ in figures:
        hand, ours = (figures[size, method, loop] for loop in loops)
        assert ours["loss"] == pytest.approx(hand["loss"], rel=1e-4)
        assert min(ours["tokens_per_second"], hand["tokens_per_second"], ours["gemm_share"]) > 0
    assert sum("compiled: " in reason for reason in report["skipped"]) == 6
    tests = report["tests"]
    assert tests["passed"] + tests["skipped"] >= 20
    assert "needs a CUDA device" in str(tests["skips"]) or tests["passed"]


@pytest.mark.parametrize("content", [[], ["notes.txt"]])
def test_a_folder_without_wheels_is_refused(tmp_path, content):
    for name in content:
        (tmp_path / name).write_text("")
    done = gpu_check("--wheels", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {tmp_path} holds no wheels, make some with `tools/gpu_wheels DIR`\n"


def test_operations_are_those_of_the_formula_by_hand(monkeypatch):
    """One layer 2 wide: 8 + 8 + 12 weights in it, 10 in the head; a row of conversations of 2 and 1 tokens."""
    import numpy as np

    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from gpu_figures import step_flops
    from mft_train.rows.packed_batch import Row

    shape = {"hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1, "vocab_size": 5}
    shape |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    row = Row(np.zeros(3, int), np.array([0, 1, 0]), np.array([2, 1]), 0)
    attention = 3 * 2 * (4 + 1) * 2
    assert step_flops(shape, "full", [row]) == 6 * (3 * (8 + 8 + 12) + 10) + attention
    assert step_flops(shape, "lora", [row]) == 4 * (3 * (8 + 8 + 12) + 10) + attention
