"""The log-probabilities that mft-infer writes are the negative losses that mft-train takes of the same ids."""

import json

import numpy as np
import pytest


def test_the_trainers_losses_are_the_logprobs_of_generation(run, merged_model, tmp_path):
    """float32, three prompts in one batch with rows of other lengths, 1e-4 in nats."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mft_infer.encoding.chat_template import Conversation
    from mft_infer.encoding.prompt_encoder import PromptEncoder
    from mft_train.loss.loss_head import LossHead
    from mft_train.rows.packed_batch import Row, pack_rows

    contents = ["Complete number 3: def add(a, b):", "x", "Explain number 12: " + "def subtract(a, b): " * 5]
    messages = [[{"role": "user", "content": content}] for content in contents]
    lines = [json.dumps({"problem_id": str(index), "messages": entry}) for index, entry in enumerate(messages)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    options = "--logprobs --temperature 1 --seed 3 --max-new-tokens 24 --dtype float32 --device cpu"
    done = run(f"mft-infer generate {merged_model} {tmp_path / 'prompts.jsonl'} - {options}")
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(merged_model, dtype=torch.float32, trust_remote_code=False).eval()
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(merged_model, trust_remote_code=False), "merged")
    for line, entry in zip(done.stdout.splitlines(), messages, strict=True):
        generation = json.loads(line)
        prompt_ids = encoder.encode_conversation(Conversation(entry))
        ids = np.array(prompt_ids + generation["token_ids"])
        mask = np.arange(len(ids)) >= len(prompt_ids)
        row = Row(ids, mask.astype(np.uint8), np.array([len(ids)], dtype=np.uint32), 0)
        batch = pack_rows([row])
        with torch.no_grad():
            _, losses, _ = LossHead(model)(model, batch, torch.ones(int(mask.sum())))
        assert (-losses).tolist() == pytest.approx(generation["logprobs"], abs=1e-4)
