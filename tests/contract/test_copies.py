"""Code that two packages have each for itself, as they never import each other, gives the same."""

import pytest

from mft_merge.output.model_config import with_old_keys as merge_config
from mft_train.checkpoint.model_config import with_old_keys as train_config

YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"model_type": "qwen2", "dtype": None, "rope_parameters": YARN, "rope_theta": 7.0},
        {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
        {"model_type": "gpt_neox_japanese", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
        {"model_type": "gemma3_text", "rope_parameters": BY_LAYER},
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "rope_parameters": BY_LAYER}},
        {"model_type": "qwen3_moe", "num_local_experts": 8, "rope_parameters": YARN},
        {"model_type": "gpt2", "dtype": "float32"},
        {},
    ],
)
def test_a_full_model_and_a_merged_one_have_the_same_keys_for_older_readers(config):
    assert train_config(config) == merge_config(config)
