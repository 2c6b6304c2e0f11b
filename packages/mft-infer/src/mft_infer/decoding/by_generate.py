"""Decoding for models that keep their state in a way of their own: transformers' generation drives, we choose."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.memory import NOT_ENOUGH, is_out_of_memory
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


def generate_all(model: "PreTrainedModel", answers: list[Answer], settings: AnswerSettings) -> Iterator[Answer]:
    """All answers as they end, one at a time: not all such models bear padding, and RWKV no company at all."""
    for answer in answers:
        try:
            _generate(model, answer, settings)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            answer.fail(NOT_ENOUGH)
        yield answer


def _generate(model: "PreTrainedModel", answer: Answer, settings: AnswerSettings) -> None:
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    def choose(_: "Tensor", logits: "Tensor") -> "Tensor":
        """Scores that leave only the token that the sampling has chosen."""
        push_tokens(logits.float(), settings, [answer])
        chosen = torch.tensor([[answer.token_ids[-1]]], device=logits.device)
        return torch.full_like(logits, -torch.inf).scatter(1, chosen, 0.0)

    def ended(ids: "Tensor", *_: object) -> "Tensor":
        return torch.tensor([answer.finish_reason is not None], device=ids.device)

    input_ids, mask = padded([answer.prompt_ids], model.device)
    generate: Any = model.generate
    with torch.inference_mode():
        generate(
            input_ids,
            attention_mask=mask,
            generation_config=GenerationConfig(do_sample=False, max_new_tokens=answer.max_new_tokens, pad_token_id=0),
            logits_processor=LogitsProcessorList([choose]),
            stopping_criteria=StoppingCriteriaList([ended]),
        )
