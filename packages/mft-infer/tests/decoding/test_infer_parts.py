"""The parts of generation one by one: sampling, detokenising, the command line."""

import re
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    MinPLogitsWarper,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.sampling import choose_tokens, penalized, request_random, request_seed
from mft_infer.settings import AnswerSettings

logit_rows = st.lists(st.floats(-8, 8), min_size=1, max_size=12)


@given(logit_rows, st.integers(0, 99))
def test_greedy_is_the_likeliest_token(row, seed):
    assert choose_tokens(torch.tensor([row]), AnswerSettings(4, 0, 1, 0), [Random(seed)]) == [
        int(torch.tensor(row).argmax())
    ]


@given(logit_rows, st.integers(0, 99), st.floats(0.1, 3), st.floats(0.05, 1), st.integers(0, 14))
def test_a_sample_is_among_the_tokens_left_in(row, seed, temperature, top_p, top_k):
    [token] = choose_tokens(torch.tensor([row]), AnswerSettings(4, temperature, top_p, top_k), [Random(seed)])
    probabilities = torch.softmax(torch.tensor(row).double() / temperature, dim=0)
    better = probabilities[probabilities > probabilities[token] + 1e-9]
    if top_k:
        assert len(better) < top_k
        probabilities = probabilities.sort(descending=True).values[:top_k]
    assert better.sum() < top_p * probabilities.sum() + 1e-9


@given(st.lists(logit_rows.map(lambda row: (row * 12)[:6]), min_size=1, max_size=4), st.integers(0, 99))
def test_a_row_is_sampled_as_alone(rows, seed):
    sampling = AnswerSettings(4, 0.8, 0.9, 5)
    together = choose_tokens(torch.tensor(rows), sampling, [Random(seed + index) for index in range(len(rows))])
    alone = [choose_tokens(torch.tensor([row]), sampling, [Random(seed + index)])[0] for index, row in enumerate(rows)]
    assert together == alone


def test_samples_have_the_probabilities_of_the_model():
    random = Random(0)
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    counts = [0, 0, 0]
    for _ in range(4000):
        counts[choose_tokens(logits, AnswerSettings(4, 1, 1, 0), [random])[0]] += 1
    # Three standard deviations of a binomial are at most 0.024.
    assert [count / 4000 for count in counts] == pytest.approx([0.5, 0.3, 0.2], abs=0.024)


def test_top_p_worked_by_hand():
    """Of 0.5, 0.3, 0.2 the first two reach 0.6; among them the first holds 0.625."""
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    counts = [0, 0, 0]
    for index in range(1000):
        counts[choose_tokens(logits, AnswerSettings(4, 1, 0.6, 0), [Random(index)])[0]] += 1
    assert counts[0] == 0
    assert counts[1] / 1000 == pytest.approx(0.625, abs=0.05)


def test_min_p_worked_by_hand():
    """Of 0.5, 0.3, 0.2 those with at least half of 0.5 are the first two."""
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    settings = AnswerSettings(temperature=1, min_p=0.5)
    chosen = {choose_tokens(logits, settings, [Random(index)])[0] for index in range(200)}
    assert chosen == {1, 2}


@given(logit_rows, st.floats(0.1, 2), st.floats(0.05, 1), st.integers(0, 12), st.floats(0, 1))
def test_tokens_left_in_are_those_of_transformers(row, temperature, top_p, top_k, min_p):
    """Its processors in its order: temperature, top-k, top-p, min-p."""
    scores = torch.tensor([row], dtype=torch.float64) / temperature
    warpers = [TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)]
    for warper in [TopKLogitsWarper(top_k), *warpers] if top_k else warpers:
        scores = warper(None, scores)
    left = {index for index, score in enumerate(scores[0].tolist()) if score > -torch.inf}
    settings = AnswerSettings(4, temperature, top_p, top_k, min_p)
    # The ties at a border may fall either way, in both.
    likely = torch.softmax(torch.tensor(row, dtype=torch.float64) / temperature, 0)
    for index in range(30):
        [token] = choose_tokens(torch.tensor([row], dtype=torch.float64), settings, [Random(index)])
        assert token in left or any(abs(likely[token] - likely[other]) < 1e-9 for other in left)


@given(logit_rows, st.floats(0.5, 2), st.lists(st.integers(0, 11), max_size=6))
def test_the_repetition_penalty_is_that_of_transformers(row, penalty, ids):
    ids = [token_id for token_id in ids if token_id < len(row)]
    logits = torch.tensor([row])
    if ids:
        expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), logits.clone())
        assert torch.equal(penalized(logits, penalty, [ids]), expected)


def test_requests_differ_in_their_random_numbers():
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    assert len({request_random(*key).random() for key in keys}) == 4
    assert request_random(3, "x", 2).random() == request_random(3, "x", 2).random()
    assert len({request_seed(*key) for key in keys}) == 4
    assert all(0 <= request_seed(*key) < 1 << 31 for key in keys)


@settings(deadline=None)
@given(st.data())
def test_pieces_join_to_the_decoded_whole(tokenizer, data):
    """Any tokens, whole characters or not: the pieces are the text, and no piece ends in half a character."""
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids, skip_special_tokens=True)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_text_comes_out_as_it_went_in(tokenizer, text):
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token_id) for token_id in tokenizer.encode(text)]
    assert "".join(pieces) + detokenizer.flush() == text
    assert text.startswith("".join(pieces))


@settings(deadline=None)
@given(st.text("abé🙂 ", max_size=24), st.lists(st.text("abé🙂 ", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_text_ends_an_answer_across_any_tokens(tokenizer, text, stops):
    """The text before the stop text that begins first of all that are complete when one is; it may span tokens."""
    answer = Answer(
        [1],
        max_new_tokens=1000,
        stop_ids=frozenset({tokenizer.eos_token_id}),
        stop_texts=tuple(stops),
        random=Random(0),
        detokenizer=Detokenizer(tokenizer),
    )
    for token_id in [*tokenizer.encode(text), tokenizer.eos_token_id]:
        if answer.finish_reason is None:
            answer.push(token_id)
    assert answer.finish_reason == "stop"
    assert text.startswith(answer.text)
    assert not any(stop in answer.text for stop in stops)
    if any(stop in text for stop in stops):
        assert any(text.startswith(stop, len(answer.text)) for stop in stops)
    else:
        assert answer.text == text


def test_a_leading_space_survives_a_decoder_that_drops_it():
    vocabulary = {"<unk>": 0, "▁a": 1, "▁return": 2, "▁x": 3, "a": 4}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    assert tokenizer.decode([2, 3]) == "return x"
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(token_id) for token_id in (2, 3)] == [" return", " x"]


def test_help_names_the_commands_and_their_options(run_infer):
    summaries = run_infer("--help").stdout
    assert {"generate", "chat", "serve"} <= set(re.findall(r"\w+", summaries))
    assert "..." not in summaries.partition("Commands:")[2]
    options = set(re.findall(r"--[\w-]+", run_infer("generate", "--help").stdout))
    assert {"--batch-size", "--num-samples", "--stop", "--base", "--seed", "--top-p"} <= options
    assert "--system" in run_infer("chat", "--help").stdout
    assert run_infer("--version").stdout.startswith("mft-infer, version ")
