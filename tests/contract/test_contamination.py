"""What mft-data found of the problems in the training data stands beside their scores in mft-eval."""

import json

PROBLEM = {
    "problem_id": "p",
    "prompt": "Write a Python function that gives back the square of the number which it is given, whatever it is.",
    "entry_point": "f",
    "test": "assert f(3) == 9\n",
    "reference": "def f(x):\n    return x * x\n",
}


def test_contamination_stands_beside_the_score(run, base_model, tmp_path):
    problems, generations, results = (tmp_path / name for name in ("problems.jsonl", "generations.jsonl", "r.json"))
    problems.write_text(json.dumps(PROBLEM) + "\n")
    generations.write_text(json.dumps({"task_id": "p", "solution": PROBLEM["reference"]}) + "\n")
    (tmp_path / "task").mkdir()
    prompts = [PROBLEM["prompt"], *(f"Number {number}?" for number in range(8))]
    lines = [json.dumps({"prompt": prompt, "response": str(len(prompt))}) + "\n" for prompt in prompts]
    (tmp_path / "task" / "part.jsonl").write_text("".join(lines))
    build = f"mft-data build {tmp_path / 'task'} {tmp_path / 'dataset'} --tokenizer {base_model} --seq-length 128"
    for command in (
        f"{build} --validation 0 --decontaminate {problems} --contaminated report",
        f"mft-eval score {problems} {generations} {results}",
    ):
        done = run(command)
        assert done.returncode == 0, done.stderr
    shown = run(f"mft-eval show {results} --dataset {tmp_path / 'dataset'}").stdout
    told = "1 conversation that shared ten words in a row with a problem is in the training data"
    assert shown.startswith(f"contamination: {told}\n")
