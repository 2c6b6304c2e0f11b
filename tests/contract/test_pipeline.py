"""The packages one after the other, each reading what the real one before it wrote."""

import json

MESSAGES = [{"role": "user", "content": "Complete number 3: def add(a, b):"}]


def events(run_dir, kind):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_training_on_a_built_dataset_lowers_every_tasks_validation_loss(lora_run):
    first, last = events(lora_run, "validation")
    assert list(first["task_losses"]) == ["completion", "explain"]
    for task, loss in first["task_losses"].items():
        assert last["task_losses"][task] < loss


def test_training_counts_the_tokens_that_the_manifest_counts(lora_run, dataset):
    manifest = json.loads((dataset / "manifest.json").read_text())
    rows = sum(task["splits"]["train"]["rows"] for task in manifest["tasks"])
    tokens = sum(task["splits"]["train"]["tokens"] for task in manifest["tasks"])
    supervised = sum(task["splits"]["train"]["supervised_tokens"] for task in manifest["tasks"])
    epoch = events(lora_run, "train")[: -(-rows // 2)]
    assert sum(event["tokens"] for event in epoch) == tokens
    assert sum(event["supervised_tokens"] for event in epoch) == supervised


def test_the_merged_model_loads_everywhere_and_renders_the_datasets_template(merged_model, dataset):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(merged_model)
    tokenizer = AutoTokenizer.from_pretrained(merged_model)
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert text == f"<s>human\n{MESSAGES[0]['content']}\n<s>bot\n"
    template = "chat_template.jinja"
    assert (merged_model / template).read_bytes() == (dataset / "tokenizer" / template).read_bytes()


def test_the_merged_model_has_the_logits_of_the_live_adapter(merged_model, lora_run, base_model):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(merged_model)(ids).logits
        base = AutoModelForCausalLM.from_pretrained(base_model)
        untouched = base(ids).logits
        live = PeftModel.from_pretrained(base, lora_run / "final")(ids).logits
    assert torch.allclose(merged, live, atol=1e-4)
    assert not torch.allclose(merged, untouched, atol=1e-2)


def test_the_prompt_of_inference_is_the_prompt_of_training(dataset, merged_model):
    """The ids before the first supervised token of a row are those of the rendered prompt."""
    import numpy as np
    from streaming import LocalDataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged_model)
    row = LocalDataset(local=str(dataset / "train" / "completion"))[0]
    length = int(row["segment_lengths"][0])
    ids, mask = row["input_ids"][:length], row["loss_mask"][:length]
    first = int(np.argmax(mask))
    text = tokenizer.decode(ids[:first])
    content = text.removeprefix("<s>human\n").removesuffix("\n<s>bot\n")
    messages = [{"role": "user", "content": content}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids[:first].tolist()
    # A newline follows EOS, unsupervised.
    assert ids[-2] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[-1]) == "\n"
    assert mask[-2:].tolist() == [1, 0]


def test_problems_to_generations_to_results_in_one_shell_line(run, merged_model, problems, tmp_path):
    results = tmp_path / "results.json"
    generate = f"mft-infer generate {merged_model} - - --max-new-tokens 48"
    done = run(f"mft-eval problems {problems} | {generate} | mft-eval score {problems} - {results}")
    assert done.returncode == 0, done.stderr
    scored = json.loads(results.read_text())
    assert [problem["problem_id"] for problem in scored["problems"]] == ["Tiny/add", "Tiny/subtract"]
    assert all(problem["num_samples"] == 1 for problem in scored["problems"])
    assert 0 <= scored["pass_at_k"]["pass@1"] <= 1


def test_an_adapter_generates_what_the_merged_model_generates(run, merged_model, lora_run, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"problem_id": "a", "messages": MESSAGES}) + "\n")
    outputs = []
    for model in (merged_model, lora_run / "final"):
        done = run(f"mft-infer generate {model} {prompts} - --max-new-tokens 16")
        assert done.returncode == 0, done.stderr
        outputs.append(json.loads(done.stdout))
    runs = [output.pop("run") for output in outputs]
    assert outputs[0] == outputs[1]
    assert runs[0]["fingerprint"] != runs[1]["fingerprint"]
    assert {"problem_id", "sample_index", "completion", "finish_reason", "num_tokens"} < set(outputs[0])


def test_canonical_solutions_as_generations_pass(run, problems, tmp_path):
    lines = [json.loads(line) for line in problems.read_text().splitlines()]
    generations = [
        {
            "problem_id": problem["task_id"],
            "sample_index": 0,
            "completion": f"```python\n{problem['prompt']}{problem['canonical_solution']}```",
            "finish_reason": "stop",
            "num_tokens": 1,
        }
        for problem in lines
    ]
    (tmp_path / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in generations))
    done = run(f"mft-eval score {problems} {tmp_path / 'generations.jsonl'} {tmp_path / 'results.json'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "results.json").read_text())["pass_at_k"]["pass@1"] == 1


def test_chat_answers_piped_lines_one_after_the_other(run, merged_model):
    done = run(f"printf 'first\\nsecond\\n' | mft-infer chat {merged_model} --max-new-tokens 4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
