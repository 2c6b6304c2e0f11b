"""A server with OpenAI's interface answers as the model does here; the server is transformers' own."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("openai", reason="the client is in the extra openai")

PROMPTS = [
    {"problem_id": "raw", "prompt": "the quick brown fox"},
    {"problem_id": "chat", "messages": [{"role": "user", "content": "fox"}]},
    {"problem_id": "empty", "messages": []},
]


@pytest.fixture(scope="module")
def sampling_model(model_dir, tmp_path_factory):
    """The model with a generation config that samples: the server of transformers samples with no other."""
    directory = tmp_path_factory.mktemp("served")
    for path in model_dir.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    config = json.loads((directory / "generation_config.json").read_text())
    (directory / "generation_config.json").write_text(json.dumps(config | {"do_sample": True}))
    return directory


@pytest.fixture(scope="module")
def server(sampling_model):
    """The address of `mft-infer serve` over the model."""
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        pytest.skip("the server of transformers needs the extra serving")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    script = "from mft_infer.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "serve", str(sampling_model), "--port", str(port), "--device", "cpu"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        deadline = time.monotonic() + 200
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield f"http://localhost:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.slow
def test_a_server_answers_as_the_model_here(server, complete, sampling_model):
    """Greedy, with a stop text; a prompt that cannot be asked is a line with an error."""
    options = ("--max-new-tokens", 8, "--stop", "zzz")
    here = complete(PROMPTS, *options)
    asked = ("--engine", "openai", "--base-url", server, "--concurrency", 2)
    there = complete(PROMPTS, *options, *asked, model=sampling_model)
    assert [entry["completion"] for entry in there] == [entry["completion"] for entry in here]
    assert [entry["finish_reason"] for entry in there] == [entry["finish_reason"] for entry in here]
    assert there[0]["run"]["engine"] == "openai"
    assert "messages is not a list" in there[2]["error"]


@pytest.mark.slow
def test_samples_are_repeated_by_their_seeds(server, complete, sampling_model):
    """One request at a time: the server has one generator for all."""
    options = ("--max-new-tokens", 8, "--temperature", 1.2, "--num-samples", 3)
    asked = ("--engine", "openai", "--base-url", server, "--concurrency", 1)
    first, again = (complete(PROMPTS[:2], *options, *asked, model=sampling_model) for _ in range(2))
    assert first == again
    assert len({entry["completion"] for entry in first}) > 2


def test_a_server_that_is_away_is_told(run_infer, write_prompts, monkeypatch):
    from mft_infer.engines import openai as engine_module

    monkeypatch.setattr(engine_module, "MAX_RETRIES", 0)
    options = ("--engine", "openai", "--base-url", "http://localhost:9/v1")
    result = run_infer("generate", "some-model", write_prompts(PROMPTS[:1]), "-", *options)
    assert result.exit_code == 1
    assert "the server cannot be reached, in http://localhost:9/v1/, go on with --resume" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--engine", "openai"),
        ("--base-url", "http://localhost:9/v1"),
    ],
)
def test_a_server_needs_an_address(options, run_infer, model_dir):
    assert run_infer("generate", model_dir, "-", "-", *options).exit_code == 2


def test_what_a_server_cannot_do_is_refused(run_infer, write_prompts):
    options = ("--engine", "openai", "--base-url", "http://localhost:9/v1")
    prompts = write_prompts([{"problem_id": "a", "prompt": "x", "special_tokens": True}])
    assert "cannot be asked of it" in run_infer("generate", "m", prompts, "-", *options).stderr
    assert "has no --beams" in run_infer("generate", "m", prompts, "-", *options, "--logprobs").stderr


def test_an_adapter_is_not_served(run_infer, adapter_dir):
    result = run_infer("serve", adapter_dir)
    assert result.exit_code == 1
    assert "is an adapter, make a model of it with mft-merge" in result.stderr


def test_lines_of_another_server_model_are_not_gone_on_with(run_infer, write_prompts, tmp_path):
    run = {"producer": "mft-infer 0.1.0", "engine": "openai", "model": "a", "fingerprint": None, "settings": {}}
    (tmp_path / "out").write_text(json.dumps({"problem_id": "raw", "sample_index": 0, "run": run}) + "\n")
    options = ("--engine", "openai", "--base-url", "http://localhost:9/v1", "--resume")
    result = run_infer("generate", "b", write_prompts(PROMPTS[:1]), tmp_path / "out", *options)
    assert "model was a and is b now" in result.stderr
