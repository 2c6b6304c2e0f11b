"""A prompt that cannot be answered is a line with an error, and costs the others nothing."""

import json

import pytest

GOOD = {"problem_id": "good", "prompt": "the quick brown fox"}
MESSAGES = [{"role": "user", "content": "x"}]
BAD = [
    ({}, "needs one of messages, chat_rounds and prompt"),
    ({"prompt": "x", "messages": MESSAGES}, "needs one of messages, chat_rounds and prompt"),
    ({"messages": MESSAGES, "chat_rounds": MESSAGES}, "needs one of messages, chat_rounds and prompt"),
    ({"prompt": 1}, "prompt is not a text"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": "x y " * 200}, "do not fit the model's context of 96 tokens"),
    ({"messages": []}, "messages is not a list"),
    ({"messages": [3]}, "message 0 needs a role"),
    ({"messages": [{"role": None, "content": "x"}]}, "message 0 needs a role"),
    ({"chat_rounds": [*MESSAGES, {"role": "user"}]}, "message 1 needs a content"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "message 0 needs a content"),
    ({"messages": [{"role": "<|end|>", "content": "x"}]}, "the role of message 0 is no word"),
    ({"messages": MESSAGES, "tools": [1]}, "tools is not a list of objects"),
    ({"messages": MESSAGES, "special_tokens": True}, "special_tokens goes with prompt only"),
    ({"prompt": "x", "tools": []}, "tools goes with messages only"),
    ({"prompt": "x", "special_tokens": 1}, "special_tokens is not true or false"),
    ({"prompt": "a\ufdd0b"}, "U+FDD0, which is reserved"),
    ({"messages": [{"role": "user", "content": "a\ufdd0b"}]}, "U+FDD0, which is reserved"),
    ({"messages": [{"role": "user", "content": "\ufdd2<|end|>"}]}, "U+FDD2, which is reserved"),
]


@pytest.mark.parametrize(("record", "error"), BAD)
def test_a_bad_prompt_is_a_line_with_its_error(record, error, complete):
    bad, good = complete([{"problem_id": "bad", **record}, GOOD], "--max-new-tokens", 4)
    assert (bad["problem_id"], bad["sample_index"]) == ("bad", 0)
    assert (bad["completion"], bad["finish_reason"], bad["num_tokens"]) == ("", "error", 0)
    assert error in bad["error"]
    assert good["completion"]
    assert "error" not in good


def test_a_template_that_refuses_the_messages_is_an_error_of_the_prompt(complete, damaged):
    (damaged / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    bad, _ = complete([{"problem_id": "bad", "messages": MESSAGES}, GOOD], model=damaged)
    assert bad["error"] == "the chat template refuses the messages: roles must alternate"


def test_errors_are_counted_at_the_end(run_infer, model_dir, write_prompts):
    entries = [{"problem_id": f"bad/{index}", "prompt": "" if index else "x y " * 200} for index in range(3)]
    result = run_infer("generate", model_dir, write_prompts([*entries, GOOD]), "-")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[1:] == [
        "3 of them are errors:",
        "  2 x the prompt is empty",
        "  1 x 800 tokens do not fit the model's context of 96 tokens with an answer",
    ]


def test_many_kinds_of_errors_are_told_in_short(run_infer, model_dir, write_prompts):
    entries = [{"problem_id": str(number), "prompt": "x y " * number} for number in range(100, 108)]
    result = run_infer("generate", model_dir, write_prompts([*entries, GOOD]), "-")
    assert result.stderr.splitlines()[-1] == "  and 3 other errors"


def test_only_errors_are_a_failure_that_keeps_the_file(run_infer, model_dir, write_prompts, tmp_path):
    prompts = write_prompts([{"problem_id": "bad", "prompt": ""}])
    result = run_infer("generate", model_dir, prompts, tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert result.stderr.endswith("Error: no prompt could be answered\n")
    assert json.loads((tmp_path / "out.jsonl").read_text())["error"] == "the prompt is empty"


def test_a_resume_that_meets_the_errors_alone_again_is_no_failure(run_infer, model_dir, write_prompts, tmp_path):
    """Not that of a finished file, nor of one that a kill has cut before the errors were put in their place."""
    out = tmp_path / "out.jsonl"
    bad = [{"problem_id": f"bad/{index}", "prompt": ""} for index in range(2)]
    command = ("generate", model_dir, write_prompts([bad[0], GOOD, bad[1]]), out, "--max-new-tokens", 2, "--resume")
    assert run_infer(*command).exit_code == 0
    whole = out.read_bytes()
    first, good, last = whole.splitlines(keepends=True)
    for content in (whole, first + last + good):
        out.write_bytes(content)
        result = run_infer(*command)
        assert result.exit_code == 0, result.output
        assert result.stderr.splitlines()[-1] == "  2 x the prompt is empty"
        assert out.read_bytes() == whole


def test_strict_stops_at_the_first_bad_prompt(run_infer, model_dir, write_prompts, tmp_path):
    prompts = write_prompts([GOOD, {"problem_id": "bad", "prompt": ""}])
    result = run_infer("generate", model_dir, prompts, tmp_path / "out.jsonl", "--strict")
    assert result.exit_code == 1
    assert result.stderr == 'Error: the prompt is empty, at problem "bad"\n'


def test_overwrite_keeps_what_is_there_until_a_line_takes_its_place(run_infer, model_dir, write_prompts, tmp_path):
    prompts, out = write_prompts([{"problem_id": "bad", "prompt": ""}, GOOD]), tmp_path / "out.jsonl"
    out.write_text("hours of work\n")
    assert run_infer("generate", model_dir, prompts, out, "--overwrite", "--strict").exit_code == 1
    assert out.read_text() == "hours of work\n"
    assert run_infer("generate", model_dir, prompts, out, "--overwrite").exit_code == 0
    assert [json.loads(line)["problem_id"] for line in out.read_text().splitlines()] == ["bad", GOOD["problem_id"]]
