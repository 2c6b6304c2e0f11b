"""Chosen and rejected answers: mft-data makes rows of them that say so, and mft-train does not train on both."""

import json

import pytest


@pytest.mark.parametrize("command", ["launch", "plan"])
def test_a_dataset_of_pairs_is_refused_in_one_line(run, base_model, tmp_path, command):
    (tmp_path / "task").mkdir()
    records = [{"prompt": f"Number {number}?", "chosen": f"{number}", "rejected": "no"} for number in range(8)]
    (tmp_path / "task" / "part.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    dataset, out = tmp_path / "dataset", tmp_path / "run"
    done = run(f"mft-data build {tmp_path / 'task'} {dataset} --tokenizer {base_model} --seq-length 128 --validation 0")
    assert done.returncode == 0, done.stderr
    config = f"model: {base_model}\ndataset: {dataset}\noutput: {out}\nmax_steps: 1\nglobal_batch_size: 1\n"
    (tmp_path / "run.yaml").write_text(config)
    done = run(f"mft-train {command} {tmp_path / 'run.yaml'}")
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert error == (
        "Error: the dataset has pairs of chosen and rejected answers, which mft-train does not train on, in "
        f"{dataset / 'manifest.json'}, "
        "build it without those tasks, or from the chosen answers alone (--format, --field)"
    )
    assert not out.exists()
