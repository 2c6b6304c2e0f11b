"""Pairs of a better and a worse answer to one prompt, as UltraFeedback, HH, Orca-DPO and TRL have them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from mft_data.errors import RecordError
from mft_data.reading.conversation import Conversation, Turn, check_order
from mft_data.reading.extras import tools_turn
from mft_data.reading.fields import filled_field, json_type
from mft_data.reading.pairs import QUESTION_FIELDS, SYSTEM_FIELDS, question_turns, system_text
from mft_data.reading.rounds import ROUNDS_FORMATS, parse_turn, role_of

PREFERENCE = "chosen/rejected"
SIDES = ("chosen", "rejected")
PROMPT_FIELDS = (*QUESTION_FIELDS, *ROUNDS_FORMATS)
# HH's texts: a whole conversation in one string, each turn behind its speaker.
TRANSCRIPT_START, TRANSCRIPT_END = "\n\nHuman:", "\n\nAssistant:"
SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
SPEAKER_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_preference(record: dict[str, Any]) -> tuple[Conversation, Conversation]:
    """The chosen and the rejected conversation of a record, which begin with the same prompt; raises RecordError.

    The prompt is what both say in the same turns from the beginning. No turn of it is supervised.
    """
    chosen, rejected = (parse_side(record, side) for side in SIDES)
    num_shared = num_shared_turns(chosen, rejected)
    if num_shared == len(chosen) == len(rejected):
        raise RecordError("chosen and rejected say the same", fix="leave the record out: it prefers nothing")
    sides = dict(zip(SIDES, (chosen, rejected), strict=True))
    if short := next((side for side, conversation in sides.items() if num_shared == len(conversation)), None):
        raise RecordError(f"{short} is only the beginning of the other one")
    for side, conversation in sides.items():
        if conversation[num_shared].role != "bot":
            raise RecordError("chosen and rejected answer different prompts")
        if not any(turn.is_supervised for turn in conversation[num_shared:]):
            raise RecordError(f'every bot turn of {side} has "train": false, which leaves nothing to learn')
    prompt = tuple(replace(turn, is_supervised=False) for turn in chosen[:num_shared])
    return (*prompt, *chosen[num_shared:]), (*prompt, *rejected[num_shared:])


def num_shared_turns(first: Conversation, second: Conversation) -> int:
    """How many turns from the beginning say the same in both."""
    num_turns = min(len(first), len(second))
    same = (
        (one.role, one.content, one.extra) == (other.role, other.content, other.extra)
        for one, other in zip(first, second, strict=False)
    )
    return next((number for number, is_same in enumerate(same) if not is_same), num_turns)


def parse_side(record: dict[str, Any], side: str) -> Conversation:
    """The whole conversation of one side: a list or a text of all turns, or the prompt's turns and the answer."""
    rounds = rounds_of(record, side)
    turns = tuple(parse_turn(entry, number) for number, entry in enumerate(rounds, start=1))
    if turns[0].role == "bot":
        turns = (*prompt_turns(record), *turns)
    check_order(turns)
    system = system_text(record)
    if system and turns[0].role != "system":
        turns = (Turn("system", system, is_supervised=False), *turns)
    elif system and turns[0].content != system:
        raise RecordError('the record has a system turn, and a field "system"', fix="leave one out")
    return (*tools_turn(record), *turns)


def rounds_of(record: dict[str, Any], field: str) -> list[Any]:
    """The rounds under a field: a list, one alone, a text in HH's manner, or the text of an answer."""
    given = record.get(field)
    if isinstance(given, dict):
        return [given]
    if isinstance(given, list) and given:
        return given
    if given is not None and not isinstance(given, str | list):
        raise RecordError(f'field "{field}" is {json_type(given)}, neither a string nor a list of rounds')
    text = "" if given == [] else filled_field(record, field)
    if not text:
        raise RecordError(f'field "{field}" is empty')
    return transcript_rounds(text) if text.startswith(TRANSCRIPT_START) else [{"role": "assistant", "content": text}]


def transcript_rounds(text: str) -> list[dict[str, str]]:
    """The rounds of a text in HH's manner."""
    _, *pieces = SPEAKER.split(text)
    return [
        {"role": SPEAKER_ROLES[speaker], "content": content}
        for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def prompt_turns(record: dict[str, Any]) -> tuple[Turn, ...]:
    """The turns before an answer that stands alone; raises RecordError if no field, or more than one, has them."""
    field = prompt_field(record)
    prompt = record[field]
    if isinstance(prompt, dict):
        # OpenAI's files have the rounds in an object; else it is one round.
        prompt = prompt.get("messages", [prompt])
    elif isinstance(prompt, str) and prompt.startswith(TRANSCRIPT_START):
        prompt = transcript_rounds(prompt.removesuffix(TRANSCRIPT_END))
    if isinstance(prompt, list):
        return tuple(parse_turn(entry, number) for number, entry in enumerate(prompt, start=1))
    return question_turns(record, field)


def prompt_field(record: dict[str, Any]) -> str:
    """The field with the prompt of a record whose sides are answers; raises RecordError."""
    found = [field for field in PROMPT_FIELDS if record.get(field)]
    if "prompt" in found:
        return "prompt"
    if "instruction" in found and "input" in found:
        found.remove("input")
    if not found:
        raise RecordError("chosen and rejected are answers, and no field has their prompt", fix="name it prompt")
    if len(found) > 1:
        raise RecordError(
            f"chosen and rejected are answers to one of the fields {', '.join(found)}",
            fix=f"say which: --field {found[0]}=prompt",
        )
    return found[0]


def fields_beside(record: dict[str, Any]) -> set[str]:
    """The fields that a pair is made of, beside its sides; the record is one that `parse_preference` takes."""
    names = {*SYSTEM_FIELDS}
    rounds = rounds_of(record, "chosen")
    if role_of(rounds[0]) != "bot":
        said = {content for entry in rounds for content in entry.values() if isinstance(content, str)}
        return names | {name for name in QUESTION_FIELDS if isinstance(record.get(name), str) and record[name] in said}
    field = prompt_field(record)
    if isinstance(record[field], str):
        names |= {"context", "history"} | ({"input"} if field == "instruction" else set())
    return names | {field}
