"""Requests as answers that a model is to grow: prompts in its ids, within its context; and answers as completions."""

import sys
from collections.abc import Iterable, Iterator

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.sampling import request_random
from mft_infer.encoding.chat_template import Conversation
from mft_infer.engines.request import Request
from mft_infer.errors import InferError, PromptError
from mft_infer.model.text_processor import TextProcessor
from mft_infer.output.generation import Completion
from mft_infer.prompts.records import Prompt, with_system
from mft_infer.settings import AnswerSettings, PromptSettings


class RequestReader:
    """Reads requests for the engines that have the model here."""

    def __init__(self, processor: TextProcessor, settings: AnswerSettings, prompt_settings: PromptSettings) -> None:
        self._processor = processor
        self._settings = settings
        self._prompt_settings = prompt_settings
        self.stop_ids = processor.stop_ids | processor.token_ids(settings.stop_token)

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raises InferError if the model cannot answer prompts of this kind at all."""
        if self._processor.tokenizer.chat_template is None and any(prompt.messages for prompt in prompts):
            raise InferError(
                "the tokenizer has no chat template",
                where=self._processor.name,
                fix='use prompts with "prompt" instead of "messages", or a model with a template',
            )

    def read(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Answer]]:
        """Each request with its answer; one whose prompt cannot be answered has ended with an error.

        The answers to one prompt have the same list of ids if their requests follow each other.
        """
        last: Prompt | None = None
        ids: list[int] = []
        error: str | None = None
        for request in requests:
            if request.prompt is not last:
                last, ids, error = request.prompt, [], None
                try:
                    ids = self._prompt_ids(request.prompt)
                except PromptError as refusal:
                    error = refusal.reason
            answer = self._answer(request, ids)
            if error is not None:
                answer.fail(error)
            yield request, answer

    def _answer(self, request: Request, ids: list[int]) -> Answer:
        limit = self._processor.context_length or sys.maxsize
        return Answer(
            ids,
            max_new_tokens=min(self._settings.max_new_tokens, limit - len(ids)),
            stop_ids=self.stop_ids,
            stop_texts=self._settings.stop,
            random=request_random(self._settings.seed, request.prompt.problem_id, request.sample_index),
            detokenizer=Detokenizer(self._processor.tokenizer),
        )

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if prompt.error is not None:
            raise PromptError(prompt.error)
        encoder = self._processor.encoder
        if prompt.messages is not None:
            messages = with_system(prompt.messages, self._prompt_settings.system)
            arguments = dict(self._prompt_settings.template_argument)
            ids = encoder.encode_conversation(Conversation(messages, prompt.tools, arguments))
        elif prompt.special_tokens:
            ids = encoder.encode_marked_text(prompt.text or "")
        else:
            ids = encoder.encode_text(prompt.text or "")
        limit = self._processor.context_length
        if limit is not None and len(ids) >= limit:
            raise PromptError(f"{len(ids)} tokens do not fit the model's context of {limit} tokens with an answer")
        if not ids:
            raise PromptError("the prompt is empty")
        return ids


def completion_of(answer: Answer, *, has_logprobs: bool) -> Completion:
    """What is told of an ended answer."""
    return Completion(
        answer.text,
        answer.finish_reason or "length",
        len(answer.token_ids),
        answer.error,
        token_ids=answer.token_ids if has_logprobs else None,
        logprobs=answer.logprobs if has_logprobs else None,
    )
