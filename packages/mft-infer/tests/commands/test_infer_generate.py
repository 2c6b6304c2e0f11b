"""`mft-infer generate`: the completions are those of the model, in order, the same in every batch."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from mft_infer.model.language_model import load_language_model
from mft_infer.settings import ModelSettings

PROMPTS = [
    {"problem_id": f"p/{index}", "prompt": text}
    for index, text in enumerate(
        ["def", "the quick brown fox", "return a + b\n" * 3, "x", "你好", "lazy dog. the", "def add(a, b):\n", "jumps"]
    )
]


def texts(entries: list[dict]) -> list[str]:
    return [entry["completion"] for entry in entries]


def test_batched_greedy_equals_one_by_one(complete):
    alone = complete(PROMPTS, "--max-new-tokens", 24, "--batch-size", 1)
    assert [entry["problem_id"] for entry in alone] == [prompt["problem_id"] for prompt in PROMPTS]
    assert len({entry["completion"] for entry in alone}) > 4
    for batch_size in (3, 16):
        assert complete(PROMPTS, "--max-new-tokens", 24, "--batch-size", batch_size) == alone


def test_positions_count_from_each_prompts_own_start(complete, tokenizer, tmp_path):
    """GPT-2 adds a vector for each position, so that a shift by the padding would show."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    alone = complete(PROMPTS, "--max-new-tokens", 12, "--batch-size", 1, model=tmp_path / "gpt2")
    assert complete(PROMPTS, "--max-new-tokens", 12, model=tmp_path / "gpt2") == alone


def test_greedy_equals_transformers_generate(complete, model_dir, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    for prompt, entry in zip(PROMPTS, complete(PROMPTS, "--max-new-tokens", 24), strict=True):
        ids = torch.tensor([tokenizer.encode(prompt["prompt"])])
        expected = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert entry["completion"] == tokenizer.decode(expected, skip_special_tokens=True)
        assert entry["num_tokens"] == len(expected)
        assert entry["finish_reason"] == ("stop" if expected[-1] == tokenizer.eos_token_id else "length")


def test_greedy_equals_transformers_generate_over_64_prompts(complete, model_dir, tokenizer):
    """Refilled batches against transformers' own generation, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    words = ["def", "fox", "the lazy", "return a", "你好", "over", "jumps +", "b\n"]
    texts = [f"{words[index % 8]} {words[index // 8]} " * (1 + index % 5) for index in range(64)]
    prompts = [{"problem_id": str(index), "prompt": text} for index, text in enumerate(texts)]
    for prompt, entry in zip(prompts, complete(prompts, "--max-new-tokens", 16, "--batch-size", 12), strict=True):
        ids = torch.tensor([tokenizer.encode(prompt["prompt"])])
        expected = model.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert entry["completion"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_samples_do_not_depend_on_the_batch(complete):
    options = ("--max-new-tokens", 16, "--temperature", 1.5, "--num-samples", 3, "--top-p", 0.9, "--top-k", 50)
    alone = complete(PROMPTS, *options, "--batch-size", 1)
    assert [(entry["problem_id"], entry["sample_index"]) for entry in alone] == [
        (prompt["problem_id"], index) for prompt in PROMPTS for index in range(3)
    ]
    assert complete(PROMPTS, *options, "--batch-size", 7) == alone
    assert complete(PROMPTS[::-1], *options)[:3] == alone[-3:]
    assert complete(PROMPTS, *options, "--seed", 1) != alone
    assert len({entry["completion"] for entry in alone}) > 20


def test_messages_are_rendered_by_the_chat_template(complete, tokenizer):
    messages = [
        {"role": "user", "content": "fox"},
        {"role": "assistant", "content": "dog"},
        {"role": "user", "content": "x"},
    ]
    text = "<s>human\nfox\n<s>bot\ndog<|end|>\n<s>human\nx\n<s>bot\n"
    by_template, by_hand = complete(
        [
            {"problem_id": "a", "messages": messages, "entry_point": "ignored"},
            {"problem_id": "b", "prompt": text, "special_tokens": True},
        ],
        "--max-new-tokens",
        12,
    )
    assert by_template["completion"] == by_hand["completion"] != ""


def test_an_adapter_directory_answers_as_its_merged_model(complete, adapter_dir, model_dir, tmp_path):
    from peft import PeftModel

    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), adapter_dir).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for path in adapter_dir.glob("tokenizer*"):
        (tmp_path / "merged" / path.name).write_bytes(path.read_bytes())
    adapted = texts(complete(PROMPTS, "--max-new-tokens", 16, model=adapter_dir))
    assert adapted == texts(complete(PROMPTS, "--max-new-tokens", 16, model=tmp_path / "merged"))
    assert adapted != texts(complete(PROMPTS, "--max-new-tokens", 16))


def test_base_stands_in_for_the_adapters_own(complete, adapter_dir, model_dir, run_infer, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in adapter_dir.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere/at/all"}))
    expected = texts(complete(PROMPTS[:2], "--max-new-tokens", 8, model=adapter_dir))
    assert texts(complete(PROMPTS[:2], "--max-new-tokens", 8, "--base", model_dir, model=moved)) == expected
    result = run_infer("generate", moved, tmp_path / "prompts.jsonl", "-")
    assert result.exit_code == 1
    reason = "of the base: there is no model directory /nowhere/at/all"
    assert result.stderr == f"Error: {reason}, in {moved}, name it with --base\n"


def test_a_stop_text_ends_the_completion_before_itself(complete):
    full = complete(PROMPTS, "--max-new-tokens", 24)
    stops = [full[0]["completion"][5:8], full[1]["completion"][9:11]]
    for entry, whole in zip(
        complete(PROMPTS, "--max-new-tokens", 24, "--stop", stops[0], "--stop", stops[1]), full, strict=True
    ):
        places = [place for stop in stops if (place := whole["completion"].find(stop)) >= 0]
        if places:
            assert entry["completion"] == whole["completion"][: min(places)]
            assert entry["finish_reason"] == "stop"
        else:
            assert (entry["completion"], entry["num_tokens"]) == (whole["completion"], whole["num_tokens"])


def test_the_answer_ends_where_the_context_ends(complete, tokenizer):
    text = "the lazy dog " * 12
    [entry] = complete([{"problem_id": "long", "prompt": text}], "--stop", "\0")
    assert entry["num_tokens"] == 96 - len(tokenizer.encode(text))
    assert entry["finish_reason"] == "length"


def test_stop_ids_are_the_eos_the_generation_configs_and_the_turns_end(model_dir, tokenizer, tmp_path):
    for path in model_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [5, 6]}))
    template = (tmp_path / "chat_template.jinja").read_text().replace("eos_token", "'<|turn|>'")
    (tmp_path / "chat_template.jinja").write_text(template)
    loaded = load_language_model(str(tmp_path), ModelSettings(device="cpu"))
    assert loaded.stop_ids == {5, 6, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|turn|>")}


def test_pipes_carry_prompts_and_generations(run_infer, model_dir):
    lines = "".join(json.dumps(prompt) + "\n" for prompt in PROMPTS)
    result = run_infer("generate", model_dir, "-", "-", "--max-new-tokens", 4, "--batch-size", 2, input=lines)
    assert result.exit_code == 0
    assert [json.loads(line)["problem_id"] for line in result.stdout.splitlines()] == [p["problem_id"] for p in PROMPTS]
    assert re.fullmatch(r"8 completions, \d+ tokens in [\d.]+ s, [\d.]+ tokens/s\n", result.stderr)


def test_the_example_of_format_md_is_what_is_written(complete):
    document = (Path(__file__).parents[2] / "FORMAT.md").read_text("utf-8")
    example = json.loads(re.search(r"```json\n(.*?)```", document, re.DOTALL).group(1))
    [entry] = complete(PROMPTS[:1], "--max-new-tokens", 3)
    assert list(entry) == list(example)
    assert [type(value) for value in entry.values()] == [type(value) for value in example.values()]
    assert list(entry["run"]) == list(example["run"])
    assert list(entry["run"]["settings"]) == list(example["run"]["settings"])


def test_an_existing_output_needs_overwrite(run_infer, model_dir, write_prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    result = run_infer("generate", model_dir, write_prompts(PROMPTS), out)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {out} exists, choose another OUT, or use --resume or --overwrite\n"
    assert out.read_text() == "precious\n"


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_the_prompts_are_not_written_over(option, run_infer, model_dir, write_prompts, tmp_path):
    prompts = write_prompts([{"problem_id": "a", "prompt": "x"}])
    before = prompts.read_bytes()
    (tmp_path / "link").symlink_to(prompts)
    for out in (prompts, tmp_path / "link"):
        result = run_infer("generate", model_dir, prompts, out, option)
        assert result.exit_code == 1
        assert result.stderr == f"Error: {out} holds the prompts, choose another OUT\n"
        assert prompts.read_bytes() == before


def test_greedy_samples_are_refused_as_wrong_usage(run_infer, model_dir):
    result = run_infer("generate", model_dir, "-", "-", "--num-samples", 2)
    assert result.exit_code == 2
    assert "--temperature" in result.stderr
