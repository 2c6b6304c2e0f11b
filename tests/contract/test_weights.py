"""Weights of records, from the line of JSON to the gradient: a record of weight two counts as two of it."""

import json

import pytest


@pytest.fixture
def first_loss(run, base_model, tmp_path):
    """The loss of a run's first step over all of some records, and the manifest of their dataset."""

    def first_loss(name, records):
        task = tmp_path / name / "task"
        task.mkdir(parents=True)
        (task / "part.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        dataset, out = tmp_path / name / "dataset", tmp_path / name / "run"
        build = f"mft-data build {task} {dataset} --tokenizer {base_model} --seq-length 128 --validation 0"
        done = run(build)
        assert done.returncode == 0, done.stderr
        settings = "max_steps: 1\nglobal_batch_size: 64\nvalidation_interval: 0\ntrackers: []\nmethod: full\n"
        config = f"model: {base_model}\ndataset: {dataset}\noutput: {out}\n{settings}"
        (tmp_path / name / "run.yaml").write_text(config)
        done = run(f"mft-train launch {tmp_path / name / 'run.yaml'}")
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        (train,) = [event for event in events if event["event"] == "train"]
        return train["loss"], json.loads((dataset / "manifest.json").read_text())

    return first_loss


def record(number, **fields):
    rounds = [{"role": "human", "content": f"Number {number}?"}, {"role": "bot", "content": "x = 1\n" * (number + 1)}]
    return {"id": number, "chat_rounds": rounds, **fields}


def test_a_record_of_weight_two_counts_as_two_of_it(first_loss):
    weighted, manifest = first_loss("weighted", [record(number, weight=1 + number % 2) for number in range(8)])
    twice = [record(number) for number in range(8) for _ in range(1 + number % 2)]
    repeated, plain_manifest = first_loss("repeated", twice)
    once, _ = first_loss("once", [record(number) for number in range(8)])
    assert (manifest["format_version"], manifest["features"]) == ("2", ["segment_weights"])
    assert plain_manifest["format_version"] == "1"
    assert weighted == pytest.approx(repeated, rel=1e-6)
    assert weighted != pytest.approx(once, rel=1e-5)
