"""The engine that is this process: a loaded model and a schedule of its rows."""

import sys
from collections.abc import Iterable, Iterator

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.beams import search_all
from mft_infer.decoding.budget import Budget
from mft_infer.decoding.by_generate import generate_all, has_state_of_its_own
from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.sampling import request_random
from mft_infer.decoding.schedule import decode_all
from mft_infer.encoding.chat_template import Conversation
from mft_infer.engines.request import Request
from mft_infer.errors import InferError, PromptError
from mft_infer.model.language_model import LanguageModel
from mft_infer.output.generation import Completion, failed
from mft_infer.prompts.records import Prompt, with_system
from mft_infer.settings import AnswerSettings, PromptSettings


class LocalEngine:
    """A loaded model that answers as many requests at a time as the budget allows."""

    def __init__(
        self, language_model: LanguageModel, settings: AnswerSettings, prompt_settings: PromptSettings, budget: Budget
    ) -> None:
        self._language_model = language_model
        self._settings = settings
        self._prompt_settings = prompt_settings
        self._budget = budget
        self._stop_ids = language_model.stop_ids | language_model.token_ids(settings.stop_token)

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raises InferError if the model cannot answer prompts of this kind at all."""
        if self._language_model.tokenizer.chat_template is None and any(prompt.messages for prompt in prompts):
            raise InferError(
                "the tokenizer has no chat template",
                where=self._language_model.name,
                fix='use prompts with "prompt" instead of "messages", or a model with a template',
            )

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        """Each request with its completion, in the order in which they are done."""
        groups: dict[str, list[Answer]] = {}
        asked: dict[Answer, Request] = {}
        for request in requests:
            problem_id = request.prompt.problem_id
            try:
                ids = groups[problem_id][0].prompt_ids if problem_id in groups else self._prompt_ids(request.prompt)
            except PromptError as error:
                yield request, failed(error.reason)
                continue
            answer = self._answer(request, ids)
            groups.setdefault(problem_id, []).append(answer)
            asked[answer] = request
        for answer in self._decode(list(groups.values())):
            yield asked[answer], _completion(answer, has_logprobs=self._settings.logprobs)

    def _decode(self, groups: list[list[Answer]]) -> Iterator[Answer]:
        model = self._language_model
        answers = [answer for group in groups for answer in group]
        if self._settings.beams == 1 and has_state_of_its_own(model.model):
            return generate_all(model.model, answers, self._settings, self._budget)
        if self._settings.beams == 1:
            return decode_all(model.forward, groups, self._settings, self._budget)
        return search_all(model.model, model.tokenizer, self._stop_ids, answers, self._settings, self._budget)

    def _answer(self, request: Request, ids: list[int]) -> Answer:
        limit = self._language_model.context_length or sys.maxsize
        return Answer(
            ids,
            max_new_tokens=min(self._settings.max_new_tokens, limit - len(ids)),
            stop_ids=self._stop_ids,
            stop_texts=self._settings.stop,
            random=request_random(self._settings.seed, request.prompt.problem_id, request.sample_index),
            detokenizer=Detokenizer(self._language_model.tokenizer),
        )

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if prompt.error is not None:
            raise PromptError(prompt.error)
        encoder = self._language_model.encoder
        if prompt.messages is not None:
            messages = with_system(prompt.messages, self._prompt_settings.system)
            arguments = dict(self._prompt_settings.template_argument)
            ids = encoder.encode_conversation(Conversation(messages, prompt.tools, arguments))
        elif prompt.special_tokens:
            ids = encoder.encode_marked_text(prompt.text or "")
        else:
            ids = encoder.encode_text(prompt.text or "")
        limit = self._language_model.context_length
        if limit is not None and len(ids) >= limit:
            raise PromptError(f"{len(ids)} tokens do not fit the model's context of {limit} tokens with an answer")
        if not ids:
            raise PromptError("the prompt is empty")
        return ids


def _completion(answer: Answer, *, has_logprobs: bool) -> Completion:
    return Completion(
        answer.text,
        answer.finish_reason or "length",
        len(answer.token_ids),
        answer.error,
        token_ids=answer.token_ids if has_logprobs else None,
        logprobs=answer.logprobs if has_logprobs else None,
    )
