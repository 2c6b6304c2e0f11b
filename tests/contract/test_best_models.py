"""The best model of a task of a real run, and the shared best, by name: merged, and asked."""

import json


def test_best_models_are_merged_and_asked_by_name(run, lora_run, merged_model, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    message = {"role": "user", "content": "Complete number 3: def add(a, b):"}
    prompts.write_text(json.dumps({"problem_id": "a", "messages": [message]}) + "\n")
    # The only checkpoint of this run is its last step's: every best is the model that the run ended with.
    assert sorted(path.name for path in (lora_run / "best").iterdir()) == ["completion", "explain"]
    done = run(f"mft-merge {lora_run / 'best' / 'explain'} {tmp_path / 'merged'}")
    assert done.returncode == 0, done.stderr
    (weights,) = merged_model.glob("*.safetensors")
    assert (tmp_path / "merged" / weights.name).read_bytes() == weights.read_bytes()
    answers = []
    for model in ("best/completion", "best"):
        done = run(f"mft-infer generate {lora_run / model} {prompts} - --max-new-tokens 12")
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["completion"])
    assert answers[0] == answers[1]
