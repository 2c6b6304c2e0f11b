"""vLLM in this process answers as the model does here; without it, one line says what is missing."""

import importlib.util

import pytest
import torch

PROMPTS = [
    {"problem_id": "raw", "prompt": "the quick brown fox"},
    {"problem_id": "chat", "messages": [{"role": "user", "content": "fox <|end|>"}]},
    {"problem_id": "empty", "prompt": ""},
]
HAS_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(
    not (HAS_VLLM and torch.cuda.is_available()), reason="needs the extra vllm and a CUDA device"
)


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_told(run_infer, model_dir, write_prompts):
    result = run_infer("generate", model_dir, write_prompts(PROMPTS), "-", "--engine", "vllm")
    assert result.exit_code == 1
    assert result.stderr == 'Error: --engine vllm needs vLLM, pip install "mft-infer[vllm]"\n'


@pytest.mark.parametrize("options", [("--beams", 2), ("--quantization", "4bit"), ("--device", "cpu")])
def test_what_vllm_does_not_have_is_refused(options, run_infer, model_dir, write_prompts):
    result = run_infer("generate", model_dir, write_prompts(PROMPTS), "-", "--engine", "vllm", *options)
    assert result.exit_code == 1
    assert result.stderr == "Error: --engine vllm has no --beams, --quantization and --device\n"


def test_an_adapter_is_not_for_vllm(run_infer, adapter_dir, write_prompts):
    result = run_infer("generate", adapter_dir, write_prompts(PROMPTS), "-", "--engine", "vllm")
    assert result.exit_code == 1
    assert "is an adapter, make a model of it with mft-merge" in result.stderr


@pytest.mark.gpu
@pytest.mark.slow
@needs_vllm
def test_vllm_answers_as_the_model_here(complete):
    """Greedy in float32, with a stop text; the log-probabilities are equal within 1e-4."""
    options = ("--max-new-tokens", 8, "--stop", "zzz", "--dtype", "float32", "--logprobs")
    here = complete(PROMPTS, *options)
    there = complete(PROMPTS, *options, "--engine", "vllm")
    for name in ("completion", "finish_reason", "num_tokens", "token_ids"):
        assert [entry.get(name) for entry in there] == [entry.get(name) for entry in here]
    for first, second in zip(here[:2], there[:2], strict=True):
        assert second["logprobs"] == pytest.approx(first["logprobs"], abs=1e-4)
    assert there[2]["error"] == "the prompt is empty"


@pytest.mark.gpu
@pytest.mark.slow
@needs_vllm
def test_samples_of_vllm_do_not_depend_on_the_batch(complete):
    options = ("--max-new-tokens", 8, "--temperature", 1.2, "--num-samples", 4, "--dtype", "float32")
    together = complete(PROMPTS[:2], *options, "--engine", "vllm")
    apart = complete(PROMPTS[:2], *options, "--engine", "vllm", "--batch-size", 1)
    assert apart == together
    assert len({entry["completion"] for entry in together}) > 2
