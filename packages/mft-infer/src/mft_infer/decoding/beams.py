"""Beam search, by transformers' own: for each prompt the likeliest of the texts that the beams have found."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.budget import Budget
from mft_infer.decoding.memory import NOT_ENOUGH, is_out_of_memory, tell_less
from mft_infer.decoding.padding import padded
from mft_infer.settings import AnswerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def search_all(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: frozenset[int],
    answers: list[Answer],
    settings: AnswerSettings,
    budget: Budget,
) -> Iterator[Answer]:
    """All answers as they end; those of one batch may have the same number of new tokens."""
    waiting = sorted(answers, key=lambda answer: (answer.max_new_tokens, len(answer.prompt_ids)), reverse=True)
    num_tokens = budget.num_tokens
    while waiting:
        limit = waiting[0].max_new_tokens
        columns = (max(len(answer.prompt_ids) for answer in waiting) + limit) * settings.beams
        count = max(1, min(budget.num_rows // settings.beams, num_tokens // columns))
        batch = [answer for answer in waiting[:count] if answer.max_new_tokens == limit]
        try:
            found = _search(model, tokenizer, stop_ids, batch, settings)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            found = None
        # Out of the except clause, as the traceback holds the tensors of the search.
        if found is None and len(batch) > 1:
            num_tokens = len(batch) * columns // 2
            tell_less(num_tokens)
            continue
        if found is None:
            batch[0].fail(NOT_ENOUGH)
        for answer, ids in zip(batch, found or [], strict=found is not None):
            _take_in(ids, answer)
        waiting = waiting[len(batch) :]
        yield from batch


def _search(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: frozenset[int],
    answers: list[Answer],
    settings: AnswerSettings,
) -> list[list[int]]:
    """The ids of each answer, with what stands after its end."""
    import torch
    from transformers import GenerationConfig

    input_ids, mask = padded([answer.prompt_ids for answer in answers], model.device)
    pad_id = min(stop_ids, default=0)
    config = GenerationConfig(
        num_beams=settings.beams,
        do_sample=False,
        early_stopping=False,
        length_penalty=1.0,
        max_new_tokens=answers[0].max_new_tokens,
        repetition_penalty=settings.repetition_penalty,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad_id,
        stop_strings=list(settings.stop) or None,
    )
    with torch.inference_mode():
        generate: Any = model.generate
        found = generate(input_ids, attention_mask=mask, generation_config=config, tokenizer=tokenizer)
    return found[:, input_ids.shape[1] :].tolist()


def _take_in(ids: list[int], answer: Answer) -> None:
    for token_id in ids:
        if answer.finish_reason is None:
            answer.push(token_id)
    if answer.finish_reason is None:
        answer.finish_reason = "stop"
