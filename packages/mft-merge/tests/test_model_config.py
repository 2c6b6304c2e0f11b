"""The keys of older readers say what the newer keys say, and nothing that is there is changed."""

from hypothesis import given
from hypothesis import strategies as st

from mft_merge.output.model_config import with_old_keys
from mft_merge.output.tokenizer_files import with_old_tokenizer_keys

VALUES = st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4))
ROPES = st.dictionaries(st.sampled_from(["rope_theta", "rope_type", "factor", "partial_rotary_factor"]), VALUES)
CONFIGS = st.dictionaries(st.sampled_from(["model_type", "dtype", "rope_theta", "vocab_size", "x"]), VALUES)


@given(CONFIGS, ROPES)
def test_no_value_is_changed_and_a_second_time_changes_nothing(config, rope):
    config = config | {"rope_parameters": rope}
    written = with_old_keys({"text_config": config, **config})
    assert with_old_keys(written) == written
    for found, given_ in ((written, config), (written["text_config"], config)):
        assert all(found[key] == value for key, value in given_.items() if value is not None)


def test_a_scaled_rope_by_hand():
    rope = {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5}
    assert with_old_keys({"dtype": "float32", "rope_parameters": rope}) == {
        "dtype": "float32",
        "torch_dtype": "float32",
        "rope_parameters": rope,
        "rope_theta": 5e5,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    }


def test_ropes_of_two_layer_types_by_hand():
    full, sliding = {"rope_theta": 1e6, "rope_type": "default"}, {"rope_theta": 1e4, "rope_type": "default"}
    rope = {"full_attention": full, "sliding_attention": sliding}
    written = with_old_keys({"rope_parameters": rope})
    assert written == {"rope_parameters": rope, "rope_theta": 1e6, "rope_local_base_freq": 1e4}


def test_keys_of_a_model_type_by_hand():
    neox = {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 3e4, "partial_rotary_factor": 0.25}}
    assert with_old_keys(neox) == neox | {"rotary_emb_base": 3e4, "rotary_pct": 0.25}
    experts = {"model_type": "qwen3_moe", "num_local_experts": 4}
    assert with_old_keys(experts) == experts | {"num_experts": 4}


def test_the_tokenizers_class_and_special_tokens_by_hand():
    config = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<x>"], "eos_token": "</s>"}
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<x>"],
        "eos_token": "</s>",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    assert with_old_tokenizer_keys(config) == written
    assert with_old_tokenizer_keys(written) == written
    assert with_old_tokenizer_keys({"tokenizer_class": "Qwen2Tokenizer"}) == {"tokenizer_class": "Qwen2Tokenizer"}
