"""What a name on the command line stands for: models, adapters, runs and what lies in them."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, MixtralConfig

from mft_infer.errors import InferError
from mft_infer.model.model_dir import find_model

PROMPTS = [
    {"problem_id": str(index), "prompt": text} for index, text in enumerate(["def", "quick brown fox", "dog " * 9])
]


def texts(entries):
    return [entry["completion"] for entry in entries]


@pytest.fixture
def run_dir(model_dir, adapter_dir, tmp_path):
    """A run as mft-train leaves it: two checkpoints, the first the best of all, one best of a task, final."""
    run = tmp_path / "run"
    for place in ("checkpoints/step-00000010/model", "checkpoints/step-00000020/model", "best/sql"):
        shutil.copytree(adapter_dir, run / place)
    shutil.copytree(model_dir, run / "final")
    (run / "metrics.jsonl").write_text("")
    best = {"format_version": "1", "checkpoint": "step-00000010", "global_step": 10, "loss": 1.5}
    (run / "checkpoints" / "best.json").write_text(json.dumps(best))
    return run


def test_a_run_stands_for_its_final_model(run_dir, model_dir, complete):
    assert find_model(str(run_dir), None).model == str(run_dir / "final")
    assert texts(complete(PROMPTS, "--max-new-tokens", 8, model=run_dir)) == texts(
        complete(PROMPTS, "--max-new-tokens", 8)
    )


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("checkpoints/step-00000020", "checkpoints/step-00000020/model"),
        ("best", "checkpoints/step-00000010/model"),
        ("best/sql", "best/sql"),
    ],
)
def test_checkpoints_and_bests_stand_for_their_models(name, place, run_dir, model_dir):
    found = find_model(str(run_dir / name), None)
    assert found.adapter == run_dir / place
    assert found.model == str(model_dir)


def test_what_a_run_does_not_have_is_told(run_dir):
    with pytest.raises(InferError, match=r'no best model of task "java", in .*, name one of sql'):
        find_model(str(run_dir / "best" / "java"), None)
    with pytest.raises(InferError, match=r"the run has no finale, in .*, name .*step-00000020"):
        find_model(str(run_dir / "finale"), None)
    shutil.rmtree(run_dir / "final")
    with pytest.raises(InferError, match=r"no final model yet, in .*, name .*step-00000020"):
        find_model(str(run_dir), None)
    (run_dir / "checkpoints" / "best.json").write_text('{"format_version": "2", "checkpoint": "x"}')
    with pytest.raises(InferError, match="format_version 2 is unknown"):
        find_model(str(run_dir / "best"), None)


def test_an_adapter_config_that_is_broken_is_told(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InferError, match=r"invalid JSON \(.*\), in .*adapter_config.json"):
        find_model(str(tmp_path), None)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(InferError, match=r"names no base model, in .*, name it with --base"):
        find_model(str(tmp_path), None)


def test_an_adapter_over_fused_experts_answers_as_it_does_live(tokenizer, complete, tmp_path):
    """PEFT puts adapters on fused experts as parameters, not as layers."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=96,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
    )
    base = AutoModelForCausalLM.from_config(config)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lora = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        init_lora_weights=False,
    )
    base.name_or_path = str(tmp_path / "base")
    adapted = get_peft_model(base, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    config_path = tmp_path / "adapter" / "adapter_config.json"
    saved = json.loads(config_path.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    config_path.write_text(json.dumps(saved))
    assert saved["target_parameters"]
    found = complete(PROMPTS, "--max-new-tokens", 12, model=tmp_path / "adapter")
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    for prompt, entry in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt["prompt"])])
        expected = live.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert entry["completion"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert texts(found) != texts(complete(PROMPTS, "--max-new-tokens", 12, model=tmp_path / "base"))


def test_a_model_of_images_and_text_is_given_text(tokenizer, complete, tmp_path):
    torch.manual_seed(0)
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "initializer_range": 0.4,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model("llava", text_config=text, vision_config=vision, image_token_index=1)
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(tmp_path / "shell")
    tokenizer.save_pretrained(tmp_path / "shell")
    found = complete(PROMPTS, "--max-new-tokens", 12, model=tmp_path / "shell")
    for prompt, entry in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt["prompt"])])
        expected = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=0, pad_token_id=0)
        assert entry["completion"] == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
