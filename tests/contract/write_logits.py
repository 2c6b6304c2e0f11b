"""Loads every model directory of a folder with the transformers that is on the path; writes logits and tokenizer facts.

Usage: python write_logits.py FOLDER OUT.npz OUT.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

LENGTH = 80
TEXT = "def add(a, b):<x> return a + b<|end|>"


def tokenizer_facts(model_dir: Path) -> dict:
    """What a tokenizer makes of a text, and what it calls special."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False)
    encoded = tokenizer(TEXT)
    messages = [{"role": "human", "content": "hi"}]
    return {
        "inputs": sorted(encoded),
        "input_ids": encoded["input_ids"],
        "eos_token": tokenizer.eos_token,
        "special": sorted(tokenizer.all_special_tokens),
        "decoded": tokenizer.decode(encoded["input_ids"], skip_special_tokens=True),
        "chat": tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False),
    }


def main() -> None:
    """Read every model of the folder."""
    transformers.utils.logging.set_verbosity_error()
    logits, facts = {}, {"version": transformers.__version__}
    for model_dir in sorted(path for path in Path(sys.argv[1]).iterdir() if (path / "config.json").is_file()):
        model = AutoModelForCausalLM.from_pretrained(model_dir, trust_remote_code=False, attn_implementation="eager")
        ids = torch.arange(LENGTH)[None] * 7 % model.config.get_text_config().vocab_size
        with torch.no_grad():
            logits[model_dir.name] = model.eval()(ids).logits.double().numpy()
        facts[model_dir.name] = {"dtype": str(model.dtype)}
        if (model_dir / "tokenizer.json").is_file():
            generation = GenerationConfig.from_pretrained(model_dir).to_diff_dict()
            generation.pop("transformers_version", None)
            facts[model_dir.name] |= tokenizer_facts(model_dir) | {"generation": generation}
    np.savez(sys.argv[2], **logits)
    Path(sys.argv[3]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
