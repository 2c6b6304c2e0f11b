"""The engine that is this process: a loaded model and batches of like length."""

import sys
from collections.abc import Iterable, Iterator

from mft_infer.decoding.decode import Sequence, decode
from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.sampling import request_random
from mft_infer.encoding.chat_template import Conversation
from mft_infer.engines.request import Request
from mft_infer.errors import InferError, PromptError
from mft_infer.model.language_model import LanguageModel
from mft_infer.output.generation import Completion, failed
from mft_infer.prompts.records import Prompt, with_system
from mft_infer.settings import AnswerSettings, PromptSettings

# So many batches are sorted by length together.
WINDOW_BATCHES = 16


class LocalEngine:
    """A loaded model that answers `batch_size` requests at a time."""

    def __init__(
        self,
        language_model: LanguageModel,
        settings: AnswerSettings,
        prompt_settings: PromptSettings,
        batch_size: int,
    ) -> None:
        self._language_model = language_model
        self._settings = settings
        self._prompt_settings = prompt_settings
        self._batch_size = batch_size

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
        sound: list[tuple[Request, list[int]]] = []
        for request in requests:
            try:
                sound.append((request, self._prompt_ids(request.prompt)))
            except PromptError as error:
                yield request, failed(error.reason)
        window = WINDOW_BATCHES * self._batch_size
        for start in range(0, len(sound), window):
            # Longest first: if memory does not suffice, that shows at once.
            part = sorted(sound[start : start + window], key=lambda pair: -len(pair[1]))
            for first in range(0, len(part), self._batch_size):
                yield from self._complete_batch(part[first : first + self._batch_size])

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

    def _complete_batch(self, batch: list[tuple[Request, list[int]]]) -> Iterator[tuple[Request, Completion]]:
        import torch

        limit = self._language_model.context_length or sys.maxsize
        sequences = [
            Sequence(
                ids,
                max_new_tokens=min(self._settings.max_new_tokens, limit - len(ids)),
                stop_ids=self._language_model.stop_ids,
                stop_texts=self._settings.stop,
                random=request_random(self._settings.seed, request.prompt.problem_id, request.sample_index),
                detokenizer=Detokenizer(self._language_model.tokenizer),
            )
            for request, ids in batch
        ]
        try:
            for _ in decode(self._language_model.model, sequences, self._settings):
                pass
        except torch.OutOfMemoryError as error:
            raise InferError("the device has not enough memory", fix="use a smaller --batch-size") from error
        for (request, _), sequence in zip(batch, sequences, strict=True):
            yield request, Completion(sequence.text, sequence.finish_reason or "length", sequence.num_tokens)
