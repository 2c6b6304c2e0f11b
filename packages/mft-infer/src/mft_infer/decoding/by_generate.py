"""Decoding for models that keep their state in a way of their own: transformers' generation drives, we choose."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.budget import Budget
from mft_infer.decoding.padding import padded
from mft_infer.decoding.sampling import push_tokens
from mft_infer.settings import AnswerSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def has_state_of_its_own(model: "PreTrainedModel") -> bool:
    """Whether transformers itself does not give the model one of its caches."""
    supports: Any = model._supports_default_dynamic_cache
    return not supports()


def generate_all(
    model: "PreTrainedModel", answers: list[Answer], settings: AnswerSettings, budget: Budget
) -> Iterator[Answer]:
    """All answers as their batches end: prompts of one length together, as such models do not all bear padding."""
    waiting = sorted(answers, key=lambda answer: len(answer.prompt_ids), reverse=True)
    while waiting:
        length = len(waiting[0].prompt_ids)
        batch = [answer for answer in waiting[: budget.num_rows] if len(answer.prompt_ids) == length]
        waiting = waiting[len(batch) :]
        _generate(model, batch, settings)
        yield from batch


def _generate(model: "PreTrainedModel", answers: list[Answer], settings: AnswerSettings) -> None:
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    input_ids, mask = padded([answer.prompt_ids for answer in answers], model.device)

    def choose(_: "Tensor", logits: "Tensor") -> "Tensor":
        """Scores that leave only the token that the sampling has chosen; token 0 where an answer has ended."""
        growing = [index for index, answer in enumerate(answers) if answer.finish_reason is None]
        push_tokens(logits[growing].float(), settings, [answers[index] for index in growing])
        chosen = torch.zeros(len(answers), 1, dtype=torch.long, device=logits.device)
        for index in growing:
            chosen[index] = answers[index].token_ids[-1]
        return torch.full_like(logits, -torch.inf).scatter(1, chosen, 0.0)

    def ended(ids: "Tensor", *_: object) -> "Tensor":
        return torch.tensor([answer.finish_reason is not None for answer in answers], device=ids.device)

    generate: Any = model.generate
    with torch.inference_mode():
        generate(
            input_ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=max(answer.max_new_tokens for answer in answers), pad_token_id=0
            ),
            logits_processor=LogitsProcessorList([choose]),
            stopping_criteria=StoppingCriteriaList([ended]),
        )
