import numpy as np
import pytest
import torch

from mft_train.model import segment_attention
from mft_train.model.segment_attention import window_mask
from mft_train.rows.packed_batch import Conversations, Row, pack_rows


def plain_attention(query, key, value, allowed):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_by_segment_equals_the_masked_formula(window):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 12, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(1, 2, 12, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    borders = torch.tensor([0, 5, 6, 12])
    segment = torch.bucketize(torch.arange(12), borders[1:], right=True)
    allowed = (segment[:, None] == segment[None, :]) & torch.ones(12, 12, dtype=torch.bool).tril()
    if window:
        allowed &= window_mask(12, window, query)
    got, weights = segment_attention.segment_attention(
        torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=borders, sliding_window=window
    )
    assert weights is None
    assert torch.allclose(got, plain_attention(query, key, value, allowed), atol=1e-12)


def test_window_mask_counts_the_query_itself():
    assert window_mask(3, 2, torch.zeros(1)).tolist() == [
        [True, False, False],
        [True, True, False],
        [False, True, True],
    ]


@pytest.mark.parametrize(
    ("mask", "is_causal", "rows"), [(torch.ones(1, 1, 2, 2), True, 1), (None, False, 1), (None, True, 2)]
)
def test_what_cannot_be_computed_by_segment_is_refused(mask, is_causal, rows):
    tensor = torch.zeros(rows, 4, 2, 8)
    module = torch.nn.Identity()
    module.is_causal = is_causal
    with pytest.raises(ValueError, match="attention by segment"):
        segment_attention.segment_attention(module, tensor, tensor, tensor, mask)


@pytest.mark.parametrize(("softcap", "has_sinks", "window"), [(2.0, False, 3), (None, True, None), (1.5, True, 4)])
def test_capped_scores_and_sinks_are_those_of_the_formula(softcap, has_sinks, window):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 12, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(1, 2, 12, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    sinks = torch.randn(4, generator=generator, dtype=torch.float64) if has_sinks else None
    borders = [0, 5, 6, 12]
    expected = torch.zeros(1, 12, 4, 8, dtype=torch.float64)
    for place in range(12):
        start = max(border for border in borders if border <= place)
        start = max(start, place - window + 1) if window else start
        for head in range(4):
            scores = 0.3 * key[0, head // 2, start : place + 1] @ query[0, head, place]
            scores = softcap * torch.tanh(scores / softcap) if softcap else scores
            exponentials = scores.exp()
            total = exponentials.sum() + (sinks[head].exp() if has_sinks else 0)
            expected[0, place, head] = exponentials / total @ value[0, head // 2, start : place + 1]
    got, _ = segment_attention.segment_attention(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        conversations=Conversations(tuple(borders)),
        scaling=0.3,
        sliding_window=window,
        softcap=softcap,
        s_aux=sinks,
    )
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)


def test_packed_conversations_have_the_logits_that_they_have_alone(tiny_model):
    from transformers import AutoModelForCausalLM

    segment_attention.register()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=segment_attention.NAME).double().eval()
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa").double().eval()
    generator = np.random.default_rng(1)
    parts = [generator.integers(0, 97, size=length) for length in (5, 1, 9, 14)]
    row = Row(np.concatenate(parts), np.ones(29), np.array([5, 1, 9, 14]), 0)
    with torch.no_grad():
        packed = model(**pack_rows([row]).forward_keywords()).logits[0]
        alone = torch.cat([reference(torch.tensor(part)[None]).logits[0, :-1] for part in parts])
    assert torch.allclose(packed, alone, atol=1e-10)
