"""Conversations from records of a question and an answer, with what other datasets put beside them."""

from __future__ import annotations

from typing import Any

from mft_data.errors import RecordError
from mft_data.reading.conversation import Conversation, Turn
from mft_data.reading.fields import filled_field, json_type, optional_field, string_field

# A pair record has one field of each.
QUESTION_FIELDS = ("prompt", "instruction", "input", "question", "query", "problem")
ANSWER_FIELDS = ("response", "output", "answer", "completion", "solution")
SYSTEM_FIELDS = ("system", "system_prompt")


def parse_pair(record: dict[str, Any], question_field: str, answer_field: str) -> Conversation:
    """The conversation of one question and its answer, after a system turn if a field has one, and after `history`.

    The `input` of an instruction, and the `context` of any question, follow it after a blank line. An instruction is
    never left out: a record with one is refused where its `input` was to be the whole question.
    """
    if question_field == "input" and optional_field(record, "instruction"):
        raise RecordError(
            f'the record has an "instruction", which the shape input/{answer_field} would leave out',
            fix=f"choose instruction/{answer_field} with --format",
        )
    answer = filled_field(record, answer_field)
    turns = (*question_turns(record, question_field), Turn("bot", answer, is_supervised=True))
    system = system_text(record)
    return (Turn("system", system, is_supervised=False), *turns) if system else turns


def question_turns(record: dict[str, Any], question_field: str) -> tuple[Turn, ...]:
    """The turns of `history`, then the question with an instruction's `input` and its `context`; raises RecordError."""
    question = string_field(record, question_field)
    if question_field == "instruction":
        question = "\n\n".join(filter(None, (question, optional_field(record, "input"))))
    question = "\n\n".join(filter(None, (question, optional_field(record, "context"))))
    return (*history_turns(record.get("history")), Turn("human", question, is_supervised=False))


def system_text(record: dict[str, Any]) -> str:
    """The text of the system turn of a record, empty if it has none; raises RecordError if it has two."""
    texts = {text for field in SYSTEM_FIELDS if (text := optional_field(record, field))}
    if len(texts) > 1:
        raise RecordError(f"the fields {' and '.join(SYSTEM_FIELDS)} say different things", fix="leave one out")
    return texts.pop() if texts else ""


def history_turns(history: Any) -> list[Turn]:
    """The turns of earlier rounds, a list of pairs of question and answer; raises RecordError.

    Their answers are trained on, as in any conversation of several rounds.
    """
    if history is None:
        return []
    if not isinstance(history, list):
        raise RecordError(f'field "history" is {json_type(history)}, not a list')
    turns = []
    for number, pair in enumerate(history, start=1):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise RecordError(f"entry {number} of the history is not a pair of question and answer")
        entry = {"question": pair[0], "answer": pair[1]}
        question = string_field(entry, "question", f"entry {number} of the history")
        answer = string_field(entry, "answer", f"entry {number} of the history")
        if not answer.strip():
            raise RecordError(f"entry {number} of the history has no answer")
        turns += [Turn("human", question, is_supervised=False), Turn("bot", answer, is_supervised=True)]
    return turns
