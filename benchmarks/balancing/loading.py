"""Models and rows as mft-train has them, for the scripts that measure what a comparison needs."""

from streaming import LocalDataset
from transformers import AutoModelForCausalLM

from mft_train.model import segment_attention
from mft_train.rows.dataset_dir import to_row


def load_model(path):
    """A model that keeps the conversations of a row apart."""
    segment_attention.register()
    return AutoModelForCausalLM.from_pretrained(
        path, attn_implementation=segment_attention.NAME, trust_remote_code=False
    )


def read_rows(dataset, split, task, most=None):
    """The first rows of a task, or all."""
    stream = LocalDataset(local=str(dataset.split_dir(split, task)))
    return [to_row(stream[index]) for index in range(len(stream) if most is None else min(most, len(stream)))]
