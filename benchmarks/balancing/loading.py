"""Models and rows as mft-train has them, for the scripts that measure what a comparison needs."""

from pathlib import Path

from peft import AutoPeftModelForCausalLM
from streaming import LocalDataset
from transformers import AutoModelForCausalLM

from mft_train.model import segment_attention
from mft_train.rows.dataset_dir import to_row


def load_model(path):
    """A model that keeps the conversations of a row apart; an adapter with its base, in one."""
    segment_attention.register()
    settings = {"attn_implementation": segment_attention.NAME, "trust_remote_code": False}
    if Path(path, "adapter_config.json").exists():
        return AutoPeftModelForCausalLM.from_pretrained(path, **settings).merge_and_unload()
    return AutoModelForCausalLM.from_pretrained(path, **settings)


def read_rows(dataset, split, task, most=None):
    """The first rows of a task, or all."""
    stream = LocalDataset(local=str(dataset.split_dir(split, task)))
    return [to_row(stream[index]) for index in range(len(stream) if most is None else min(most, len(stream)))]
