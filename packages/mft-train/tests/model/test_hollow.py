"""A hollow model is the real one but for the values of its weights, which take no memory."""

import pytest
import torch
from transformers import AutoConfig

from mft_train.config.config import RunConfig
from mft_train.model import segment_attention
from mft_train.model.compute import settle_compute
from mft_train.model.load import hollow_base, load_base

segment_attention.register()


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_hollow_model_has_the_shapes_ties_and_buffers_of_the_real_one(make_model, tmp_path, is_tied):
    path = make_model(tmp_path / "base", tie_word_embeddings=is_tied)
    config = RunConfig(model=str(path), dataset="d", output="o", max_steps=1)
    compute = settle_compute(config, torch.device("cpu"))
    real, hollow = (
        load_base(config, compute, torch.bfloat16, None),
        hollow_base(config, compute, torch.bfloat16),
    )
    shapes = [{n: (t.shape, t.dtype) for n, t in model.named_parameters()} for model in (real, hollow)]
    assert shapes[0] == shapes[1]
    for name, buffer in real.named_buffers():
        assert hollow.get_buffer(name).equal(buffer)
    assert (hollow.lm_head.weight is hollow.model.embed_tokens.weight) == is_tied
    hollow.load_state_dict(real.state_dict())
    ids = torch.arange(9)[None]
    assert hollow.eval()(ids).logits.equal(real.eval()(ids).logits)


def test_a_hollow_model_takes_no_memory(tmp_path):
    from mft_train.tracking.peak_memory import peak_memory_bytes

    shape = {"vocab_size": 50_000, "hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32}
    AutoConfig.for_model("llama", **shape).save_pretrained(tmp_path)
    config = RunConfig(model=str(tmp_path), dataset="d", output="o", max_steps=1)
    compute = settle_compute(config, torch.device("cpu"))
    before = peak_memory_bytes()
    model = hollow_base(config, compute, torch.float32)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert size > 2.5e9
    assert peak_memory_bytes() - before < 0.1 * size
