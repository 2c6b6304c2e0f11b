"""A conversation with one model: messages come in, answers stream out, the history grows until it is changed."""

import sys
from collections.abc import Generator
from dataclasses import dataclass, field

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.by_generate import has_state_of_its_own
from mft_infer.decoding.continuation import Continuation
from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.memory import NOT_ENOUGH, is_out_of_memory
from mft_infer.decoding.sampling import request_random
from mft_infer.encoding.chat_template import Conversation
from mft_infer.errors import InferError, PromptError
from mft_infer.model.language_model import LanguageModel
from mft_infer.settings import AnswerSettings, PromptSettings

Message = dict[str, str]
# At least this share of the context is kept free for an answer, unless --max-new-tokens asks for less.
ANSWER_SHARE = 4


@dataclass
class Session:
    """What was said so far; `rounds` are questions and answers in turn, without the system message."""

    language_model: LanguageModel
    answer_settings: AnswerSettings
    prompt_settings: PromptSettings
    rounds: list[Message] = field(default_factory=list)
    num_left_out: int = 0  # rounds that the last answer was made without
    finish_reason: str | None = None  # of the last answer
    _num_answers: int = 0

    def __post_init__(self) -> None:
        model = self.language_model
        if has_state_of_its_own(model.model):
            raise InferError("the model keeps its state in a way of its own, which chat cannot", where=model.name)
        if model.tokenizer.chat_template is None:
            raise InferError("the tokenizer has no chat template", where=model.name, fix="use a model with one")
        self._stop_ids = model.stop_ids | model.token_ids(self.answer_settings.stop_token)
        self._continuation = Continuation(model.forward)

    def ask(self, content: str) -> Generator[str, None, None]:
        """Answer a message, piece by piece; whatever ends it, question and answer are in the history.

        Raises PromptError at once, and leaves the history as it was, for a message that does not fit the context.
        """
        question = {"role": "user", "content": content}
        return self._reply(question, self._fitting_ids(question))

    def _reply(self, question: Message, ids: list[int]) -> Generator[str, None, None]:
        answer = self._answer(ids)
        reply = {"role": "assistant", "content": ""}
        self.rounds += [question, reply]
        num_given = 0
        try:
            for _ in self._continuation.grow(answer, self.answer_settings):
                piece = answer.text[num_given : answer.num_certain]
                num_given += len(piece)
                if piece:
                    yield piece
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InferError(NOT_ENOUGH, fix="begin anew, or say less") from error
        finally:
            reply["content"] = answer.text
            self.finish_reason = answer.finish_reason

    def retry(self) -> str | None:
        """Take back the last answer; the question to be asked again, None if there is none."""
        question = self.rounds[-2]["content"] if self.rounds else None
        self.undo()
        return question

    def undo(self) -> bool:
        """Take back the last question and its answer; whether there was one."""
        had_rounds = bool(self.rounds)
        del self.rounds[-2:]
        return had_rounds

    def num_tokens(self) -> int:
        """Tokens of the whole history."""
        return len(self._ids(self.rounds)) if self.rounds else 0

    def messages(self) -> list[Message]:
        """The system message, if there is one, and the rounds."""
        return self._system() + self.rounds

    def answered_messages(self) -> list[Message]:
        """The messages without the questions that have an empty answer; none if none is left."""
        pairs = zip(self.rounds[::2], self.rounds[1::2], strict=True)
        answered = [message for pair in pairs if pair[1]["content"].strip() for message in pair]
        return self._system() + answered if answered else []

    def _system(self) -> list[Message]:
        system = self.prompt_settings.system
        return [] if system is None else [{"role": "system", "content": system}]

    def _ids(self, rounds: list[Message]) -> list[int]:
        arguments = dict(self.prompt_settings.template_argument)
        return self.language_model.encoder.encode_conversation(Conversation(self._system() + rounds, None, arguments))

    def _fitting_ids(self, question: Message) -> list[int]:
        """The ids of the longest end of the history that leaves room for an answer; a question goes with its answer."""
        limit = self.language_model.context_length or sys.maxsize
        room = min(self.answer_settings.max_new_tokens, limit // ANSWER_SHARE)
        for first in range(0, len(self.rounds) + 1, 2):
            ids = self._ids([*self.rounds[first:], question])
            if not ids:
                raise PromptError("the chat template makes nothing of the messages")
            if len(ids) + room <= limit:
                self.num_left_out = first
                return ids
        raise PromptError(
            f"the message has {len(ids)} tokens, the model's context has {limit} for it and {room} of an answer"
        )

    def _answer(self, ids: list[int]) -> Answer:
        limit = self.language_model.context_length or sys.maxsize
        self._num_answers += 1
        return Answer(
            ids,
            max_new_tokens=min(self.answer_settings.max_new_tokens, limit - len(ids)),
            stop_ids=self._stop_ids,
            stop_texts=self.answer_settings.stop,
            random=request_random(self.answer_settings.seed, "chat", self._num_answers - 1),
            detokenizer=Detokenizer(self.language_model.tokenizer),
        )
