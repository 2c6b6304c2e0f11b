"""The engine that is this process: a loaded model and a schedule of its rows."""

from collections.abc import Iterable, Iterator

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.beams import search_all
from mft_infer.decoding.budget import Budget
from mft_infer.decoding.by_generate import generate_all, has_state_of_its_own
from mft_infer.decoding.schedule import decode_all
from mft_infer.engines.request import Request
from mft_infer.engines.request_reader import RequestReader, completion_of
from mft_infer.errors import InferError
from mft_infer.model.language_model import LanguageModel
from mft_infer.output.generation import Completion
from mft_infer.prompts.records import Prompt
from mft_infer.settings import AnswerSettings, PromptSettings


class LocalEngine:
    """A loaded model that answers as many requests at a time as the budget allows."""

    def __init__(
        self, language_model: LanguageModel, settings: AnswerSettings, prompt_settings: PromptSettings, budget: Budget
    ) -> None:
        if settings.beams > 1 and has_state_of_its_own(language_model.model):
            raise InferError(
                "the model keeps its state in a way of its own, which beams cannot share", where=language_model.name
            )
        self._language_model = language_model
        self._settings = settings
        self._budget = budget
        self._reader = RequestReader(language_model, settings, prompt_settings)

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raises InferError if the model cannot answer prompts of this kind at all."""
        self._reader.check(prompts)

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        """Each request with its completion, in the order in which they are done."""
        groups: dict[str, list[Answer]] = {}
        asked: dict[Answer, Request] = {}
        for request, answer in self._reader.read(requests):
            if answer.finish_reason is None:
                groups.setdefault(request.prompt.problem_id, []).append(answer)
                asked[answer] = request
            else:
                yield request, completion_of(answer, has_logprobs=False)
        for answer in self._decode(list(groups.values())):
            yield asked[answer], completion_of(answer, has_logprobs=self._settings.logprobs)

    def _decode(self, groups: list[list[Answer]]) -> Iterator[Answer]:
        model = self._language_model
        answers = [answer for group in groups for answer in group]
        if has_state_of_its_own(model.model):
            return generate_all(model.model, answers, self._settings)
        if self._settings.beams == 1:
            return decode_all(model.forward, groups, self._settings, self._budget)
        return search_all(model.model, model.tokenizer, self._reader.stop_ids, answers, self._settings, self._budget)
