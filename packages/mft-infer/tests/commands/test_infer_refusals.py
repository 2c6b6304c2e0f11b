"""What cannot be done ends in one line that names the file, the line or the problem, and leaves no file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture
def fails(run_infer, tmp_path):
    """fails(model, prompts, input=...) is the one line of a generation that must fail."""

    def run(model, prompts="-", *options, input=None) -> str:  # noqa: A002
        out = tmp_path / "out" / "out.jsonl"
        result = run_infer("generate", model, prompts, out, *options, input=input)
        assert result.exit_code == 1, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert not out.parent.exists() or list(out.parent.iterdir()) == []
        return result.stderr

    return run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "invalid JSON"),
        ("", "invalid JSON"),
        ("[]", "a prompt is not a JSON object"),
        ('{"prompt": "x"}', "problem_id is missing or not a text"),
        ('{"problem_id": 3, "prompt": "x"}', "problem_id is missing or not a text"),
        ('{"problem_id": "a", "prompt": "x"}', 'problem_id "a" is in line 1 already'),
    ],
)
def test_a_malformed_line_is_named(line, message, fails, model_dir, tmp_path):
    text = '{"problem_id": "a", "prompt": "x"}\n' + line + "\n"
    from_pipe = fails(model_dir, input=text)
    assert message in from_pipe
    assert "in <stdin> line 2" in from_pipe
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    assert f"in {path} line 2" in fails(model_dir, path)


def test_no_prompts_are_an_error(fails, model_dir):
    assert "there are no prompts, in <stdin>" in fails(model_dir, input="")


def test_a_missing_prompts_file_is_one_line(fails, model_dir, tmp_path):
    assert f"No such file or directory, in {tmp_path / 'none'}" in fails(model_dir, tmp_path / "none")


PROMPT = '{"problem_id": "a", "messages": [{"role": "user", "content": "x"}]}'


def test_messages_without_a_chat_template_are_refused(fails, damaged):
    (damaged / "chat_template.jinja").unlink()
    message = fails(damaged, input=PROMPT)
    assert "the tokenizer has no chat template" in message


def test_bad_models_are_one_line(fails, tmp_path, damaged):
    (tmp_path / "empty").mkdir()
    assert f"there is no model directory {tmp_path / 'none'}" in fails(tmp_path / "none", input=PROMPT)
    assert "it has neither config.json nor adapter_config.json" in fails(tmp_path / "empty", input=PROMPT)
    assert "cannot be had from the hub" in fails("someone/some-model", input=PROMPT)
    (tmp_path / "file").write_text("")
    assert "is a file, not a model directory" in fails(tmp_path / "file", input=PROMPT)
    assert "is no adapter, so it has no base" in fails(damaged, "-", "--base", tmp_path, input=PROMPT)
    assert 'unknown device "gpu7"' in fails(damaged, "-", "--device", "gpu7", input=PROMPT)
    assert "the device meta has shapes and no numbers" in fails(damaged, "-", "--device", "meta", input=PROMPT)
    # Rows of 32 inputs are no whole block of 4-bit weights.
    assert "the rounded model does not run" in fails(damaged, "-", "--quantization", "4bit", input=PROMPT)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"])
def test_a_broken_model_file_is_one_line(name, fails, damaged):
    (damaged / name).write_bytes((damaged / name).read_bytes()[:50])
    assert f"in {damaged}" in fails(damaged, input=PROMPT)


def test_a_model_with_a_missing_weight_is_refused(fails, damaged):
    weights = load_file(damaged / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    assert "weight model.layers.1.mlp.up_proj.weight is missing" in fails(damaged, input=PROMPT)


@pytest.fixture
def damaged_adapter(adapter_dir, tmp_path):
    """A copy of the adapter directory that a test may damage."""
    return Path(shutil.copytree(adapter_dir, tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("gone", "of the base: there is no model directory gone, in {0}, name it with --base"),
        ("gone/base", '"gone/base" is no directory here and cannot be had from the hub'),
        ("gone/base", "or name the base of {0} with --base"),
    ],
)
def test_a_base_that_is_gone_is_told_as_such(base, message, fails, damaged_adapter):
    path = damaged_adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    assert message.format(damaged_adapter) in fails(damaged_adapter, input=PROMPT)


def test_an_adapter_of_another_model_or_without_weights_says_what_is_wrong(fails, big_cache_model, damaged_adapter):
    assert "size mismatch for" in fails(damaged_adapter, "-", "--base", big_cache_model, input=PROMPT)
    (damaged_adapter / "adapter_model.safetensors").unlink()
    assert "the adapter has no weights" in fails(damaged_adapter, input=PROMPT)


@pytest.mark.parametrize("edit", [lambda weights: weights.popitem(), lambda weights: weights.clear()])
def test_an_adapter_with_missing_weights_is_refused(edit, fails, damaged_adapter):
    weights = load_file(damaged_adapter / "adapter_model.safetensors")
    edit(weights)
    save_file(weights, damaged_adapter / "adapter_model.safetensors")
    assert "the adapter does not load" in fails(damaged_adapter, input=PROMPT)


def test_a_reader_that_leaves_ends_the_command_quietly(model_dir):
    lines = "".join(json.dumps({"problem_id": str(index), "prompt": "x"}) + "\n" for index in range(40))
    script = "from mft_infer.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "generate", str(model_dir), "-", "-", "--batch-size", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    process.stdin.write(lines.encode())
    process.stdin.close()
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait(timeout=120)
    assert b"Traceback" not in errors


def test_a_closed_stdout_is_told_before_the_model_is_loaded(tmp_path):
    script = "from mft_infer.cli import main; main()"
    command = ["bash", "-c", '"$@" >&-', "bash", sys.executable, "-c", script, "generate", str(tmp_path), "-", "-"]
    done = subprocess.run(command, input="", stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: stdout is closed, name a file to write to\n")
