import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mft_train.loss.loss_head import LossHead
from mft_train.model import segment_attention
from mft_train.rows.packed_batch import Row, pack_rows

ROW = Row(np.arange(12), np.array([0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1]), np.array([5, 7]), 0)
COEFFICIENTS = torch.linspace(0.1, 0.7, 7, dtype=torch.float64)


def small(model_class, config_class, **settings):
    torch.manual_seed(0)
    segment_attention.register()
    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    config = config_class(**shape | settings, attn_implementation=segment_attention.NAME)
    return model_class(config).double()


def llama(**settings):
    from transformers import LlamaConfig, LlamaForCausalLM

    return small(LlamaForCausalLM, LlamaConfig, **settings)


def scaled():
    from transformers import GraniteConfig, GraniteForCausalLM

    return small(GraniteForCausalLM, GraniteConfig, logits_scaling=4.0)


def with_bias():
    model = llama()
    model.lm_head = nn.Linear(32, 97, bias=True, dtype=torch.float64)
    return model


def with_adapter_on_the_projection():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head", "q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    return model.double()


def with_adapter():
    from peft import LoraConfig, get_peft_model

    return get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")).double()


MODELS = {
    "separate": (llama, True),
    "tied": (lambda: llama(tie_word_embeddings=True), True),
    "adapter": (with_adapter, True),
    "scaled logits": (scaled, False),
    "bias": (with_bias, False),
    "adapter on the projection": (with_adapter_on_the_projection, False),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_objective_and_its_gradients_are_those_of_the_logits(name):
    make, is_plain = MODELS[name]
    model = make()
    head = LossHead(model)
    assert (head.projection is not None) == is_plain
    batch = pack_rows([ROW])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = cross_entropy(model(**batch.forward_keywords()).logits[0], batch.labels, reduction="none")
    expected = torch.autograd.grad(COEFFICIENTS @ losses, trained)
    objective, token_losses, _ = head(model, batch, COEFFICIENTS)
    got = torch.autograd.grad(objective, trained)
    assert objective.item() == pytest.approx((COEFFICIENTS @ losses).item(), abs=1e-12)
    assert torch.allclose(token_losses, losses.detach(), rtol=0, atol=1e-12)
    assert all(torch.allclose(one, other, rtol=0, atol=1e-12) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("make", [llama, scaled])
def test_a_batch_without_supervised_tokens_gives_a_zero_connected_to_every_parameter(make):
    model = make()
    batch = pack_rows([Row(np.arange(4), np.zeros(4), np.array([4]), 0)])
    objective, losses, _ = LossHead(model)(model, batch, torch.zeros(0, dtype=torch.float64))
    objective.backward()
    assert objective.item() == 0
    assert losses.tolist() == []
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_the_model_gives_its_logits_again_afterwards():
    model = llama()
    keywords = pack_rows([ROW]).forward_keywords()
    before = model(**keywords).logits
    LossHead(model)(model, pack_rows([ROW]), COEFFICIENTS)
    assert torch.equal(model(**keywords).logits, before)
