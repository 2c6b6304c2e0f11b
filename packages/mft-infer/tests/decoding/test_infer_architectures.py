"""Greedy batches of every kind of model equal transformers' own generation prompt by prompt, rows ending apart."""

from random import Random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.budget import Budget
from mft_infer.decoding.by_generate import generate_all, has_state_of_its_own
from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.forward import Forward
from mft_infer.decoding.schedule import decode_all
from mft_infer.settings import AnswerSettings

pytestmark = pytest.mark.whole

COMMON = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_key_value_heads": 4,
    "head_dim": 4,
}
MODELS = {
    "mistral": {"sliding_window": 8},
    "gemma3_text": SLIDING,
    "gpt_oss": SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "bloom": {},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT,
    "qwen3_next": DELTA | EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_5_text": DELTA,
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {"state_size": 4, "time_step_rank": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 32, "mamba_n_heads": 4},
    "bamba": MAMBA | {"attn_layer_indices": [1, 3]},
    "jamba": {
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "rwkv": {"attention_hidden_size": 32},
    "minimax": {"num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"] * 2, "block_size": 8},
}


@pytest.mark.parametrize("name", MODELS)
def test_batches_equal_generation_one_by_one(name, tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**COMMON, **MODELS[name]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
    model.generation_config = GenerationConfig()
    random = Random(1)
    prompts = [[random.randrange(3, 99) for _ in range(length)] for length in (3, 17, 9, 1, 9, 5, 20, 3)]
    limits = [4 + 5 * (index % 4) for index in range(len(prompts))]
    expected = [
        model.generate(torch.tensor([ids]), max_new_tokens=limit, do_sample=False, eos_token_id=2, pad_token_id=0)[
            0, len(ids) :
        ].tolist()
        for ids, limit in zip(prompts, limits, strict=True)
    ]
    answers = [
        Answer(
            ids,
            max_new_tokens=limit,
            stop_ids=frozenset({2}),
            stop_texts=(),
            random=Random(0),
            detokenizer=Detokenizer(tokenizer),
        )
        for ids, limit in zip(prompts, limits, strict=True)
    ]
    if has_state_of_its_own(model):
        ended = list(generate_all(model, answers, AnswerSettings()))
    else:
        ended = list(decode_all(Forward(model), [[answer] for answer in answers], AnswerSettings(), Budget(3, 1000)))
    assert set(ended) == set(answers)
    assert [answer.token_ids for answer in answers] == expected
    assert len({tuple(ids) for ids in expected}) > 6
