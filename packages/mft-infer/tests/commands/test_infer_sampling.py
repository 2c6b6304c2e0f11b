"""The settings of answers, from the command line to the text."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

PROMPTS = [
    {"problem_id": f"p/{index}", "prompt": text}
    for index, text in enumerate(["def", "the quick brown fox", "return a + b\n" * 3, "你好", "lazy dog. the", "jumps"])
]


@pytest.mark.parametrize("beams", [2, 3])
def test_beams_are_those_of_transformers(beams, complete, model_dir, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    found = complete(PROMPTS, "--max-new-tokens", 12, "--beams", beams, "--batch-size", 8)
    assert found != complete(PROMPTS, "--max-new-tokens", 12)
    for prompt, entry in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt["prompt"])])
        expected = model.generate(ids, max_new_tokens=12, num_beams=beams, do_sample=False, pad_token_id=0)
        assert entry["completion"] == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)


def test_beams_end_before_stop_texts(complete):
    whole = complete(PROMPTS, "--max-new-tokens", 12, "--beams", 2)
    stop = whole[0]["completion"][4:6]
    for entry in complete(PROMPTS, "--max-new-tokens", 12, "--beams", 2, "--stop", stop):
        assert stop not in entry["completion"]


def test_the_repetition_penalty_is_that_of_transformers(complete, model_dir, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    found = complete(PROMPTS, "--max-new-tokens", 20, "--repetition-penalty", 1.3)
    assert found != complete(PROMPTS, "--max-new-tokens", 20)
    for prompt, entry in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt["prompt"])])
        options = {"repetition_penalty": 1.3, "do_sample": False, "pad_token_id": 0}
        expected = model.generate(ids, max_new_tokens=20, **options)[0, ids.shape[1] :]
        assert entry["completion"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_logprobs_are_those_of_one_forward(complete, model_dir, tokenizer):
    """Under the model itself, whatever the temperature and what it leaves in."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    options = ("--max-new-tokens", 16, "--temperature", 0.7, "--top-k", 20, "--logprobs")
    for prompt, entry in zip(PROMPTS, complete(PROMPTS, *options), strict=True):
        ids = tokenizer.encode(prompt["prompt"])
        assert len(entry["token_ids"]) == len(entry["logprobs"]) == entry["num_tokens"]
        with torch.no_grad():
            logits = model(torch.tensor([ids + entry["token_ids"]])).logits[0, len(ids) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(entry["token_ids"])), entry["token_ids"]]
        assert entry["logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)


def test_stop_tokens_by_text_and_by_id(complete, tokenizer):
    whole = complete(PROMPTS, "--max-new-tokens", 16, "--logprobs")
    stop = whole[0]["token_ids"][5]
    by_id = complete(PROMPTS, "--max-new-tokens", 16, "--stop-token", stop, "--logprobs")
    assert by_id[0]["token_ids"] == whole[0]["token_ids"][: whole[0]["token_ids"].index(stop) + 1]
    assert by_id[0]["finish_reason"] == "stop"
    by_text = complete(
        PROMPTS, "--max-new-tokens", 16, "--stop-token", tokenizer.convert_ids_to_tokens(stop), "--logprobs"
    )
    assert [entry["token_ids"] for entry in by_text] == [entry["token_ids"] for entry in by_id]


def test_an_unknown_stop_token_is_refused(run_infer, model_dir, write_prompts):
    result = run_infer("generate", model_dir, write_prompts(PROMPTS), "-", "--stop-token", "<|nothing|>")
    assert result.exit_code == 1
    assert 'the tokenizer has no token "<|nothing|>"' in result.stderr


@pytest.fixture
def with_defaults(damaged):
    """A model whose generation config asks for sampling."""
    path = damaged / "generation_config.json"
    config = json.loads(path.read_text()) | {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}
    path.write_text(json.dumps(config))
    return damaged


def test_the_generation_config_is_told_and_not_used(run_infer, with_defaults, model_dir, write_prompts):
    prompts = write_prompts(PROMPTS)
    told = run_infer("generate", with_defaults, prompts, "-", "--max-new-tokens", 8)
    plain = run_infer("generate", model_dir, prompts, "-", "--max-new-tokens", 8)
    shown = (
        "the model's generation config has temperature 0.6, top_k 20, top_p 0.9: not used without --generation-config"
    )
    assert told.stderr.splitlines()[0] == shown
    texts = [[json.loads(line)["completion"] for line in run.stdout.splitlines()] for run in (told, plain)]
    assert texts[0] == texts[1]


def test_the_generation_config_is_used_where_the_command_line_has_nothing(complete, with_defaults):
    [entry] = complete(PROMPTS[:1], "--generation-config", "--top-p", 0.5, model=with_defaults)
    settings = entry["run"]["settings"]
    assert (settings["temperature"], settings["top_p"], settings["top_k"]) == (0.6, 0.5, 20)
    assert len(complete(PROMPTS[:1], "--generation-config", "--num-samples", 3, model=with_defaults)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -3}, "the temperature -3 of the model's generation config is none"),
        ({"temperature": float("nan")}, "the temperature nan of"),
        ({"top_p": "high"}, "the top_p 'high' of"),
        ({"eos_token_id": "<|end|>"}, "an eos_token_id of the generation config is no number"),
    ],
)
def test_a_generation_config_of_wrong_values_is_refused(changes, message, run_infer, with_defaults, write_prompts):
    path = with_defaults / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    result = run_infer("generate", with_defaults, write_prompts(PROMPTS), "-", "--generation-config")
    assert result.exit_code == 1
    assert f"Error: {message}" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--beams", 2, "--temperature", 1),
        ("--beams", 2, "--logprobs"),
        ("--num-samples", 2),
        ("--seed", 2**63),  # no line could hold it
        ("--max-new-tokens", 2**64),
        ("--system", "\udcff"),  # bytes that are no UTF-8
        ("--template-argument", "name=\udcff"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--top-p", "nan"),
    ],
)
def test_settings_that_do_not_go_together_are_wrong_usage(options, run_infer, model_dir):
    assert run_infer("generate", model_dir, "-", "-", *options).exit_code == 2


@pytest.mark.parametrize("value", ["99999999999999999999999", "NaN", "-1e999"])
def test_numbers_that_json_does_not_hold_lose_no_line(value, complete, model_dir):
    [entry] = complete(PROMPTS[:1], "--max-new-tokens", 2, "--template-argument", f"n={value}")
    assert "n" in entry["run"]["settings"]["template_argument"]
