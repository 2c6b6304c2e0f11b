"""Every kind of adapter trains, resumes bit for bit, and is read by peft as it was trained."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from mft_train.cli import main

pytestmark = pytest.mark.whole
KINDS = {
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "some targets": {"target_modules": ["q_proj", "v_proj"], "rslora": True},
}


@pytest.fixture
def launch(write_run):
    settings = {"max_steps": 4, "global_batch_size": 4, "learning_rate": 0.01, "validation_interval": 0}

    def launch(*arguments, **lora):
        path = write_run(**settings, checkpoint_interval=2, trackers=[], lora=lora)
        return CliRunner().invoke(main, ["launch", str(path), *arguments])

    return launch


def events(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["event"], line["loss"]) for line in lines if line["event"] in ("train", "validation")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trains_resumes_and_loads(launch, tmp_path, tiny_model, kind):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run_dir = tmp_path / "run"
    result = launch(**KINDS[kind])
    assert result.exit_code == 0, result.stderr
    whole, final = events(run_dir), (run_dir / "final" / "adapter_model.safetensors").read_bytes()
    assert whole[-1][1] != whole[0][1]
    shutil.rmtree(run_dir / "final")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000004")
    assert launch("--resume", **KINDS[kind]).exit_code == 0
    assert events(run_dir) == whole
    assert (run_dir / "final" / "adapter_model.safetensors").read_bytes() == final

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = base(torch.arange(12)[None]).logits
    model = PeftModel.from_pretrained(base, run_dir / "final").eval()
    assert not torch.allclose(model(torch.arange(12)[None]).logits, before, atol=1e-3)


def test_a_module_that_is_not_there_is_named(launch, tmp_path):
    result = launch(modules_to_save=["score"])
    assert result.exit_code == 1
    assert 'no module of the model ends in "score", set lora.modules_to_save' in result.stderr
    assert not (tmp_path / "run").exists()


def test_another_kind_of_adapter_is_another_run(launch):
    assert launch().exit_code == 0
    result = launch("--resume", "--force", dora=True)
    assert result.exit_code == 1
    assert "lora.dora is True, the checkpoint was made with False" in result.stderr
