"""The conversation: its turns, who may speak when, and the roles that records name."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache

from mft_data.errors import RecordError

# The roles a record may use, and those that conversations are made of.
ROLES = {
    "system": "system",
    "developer": "system",
    "human": "human",
    "user": "human",
    "bot": "bot",
    "assistant": "bot",
    "gpt": "bot",
    "tool": "tool",
}
# The turn before all others that has, as JSON, the functions that a model may call.
TOOLS = "tools"

# Opens the private names of special tokens (see special_tokens.py); a Unicode noncharacter, never valid in interchange.
RESERVED_CHARACTER = "\ufdd0"


@dataclass(frozen=True, slots=True)
class Turn:
    """One round; `role` is system, human, bot or tool, TOOLS, or text for a document without roles.

    `extra` is a JSON object of what else a chat template is given of it, such as `tool_calls`; empty without any.
    """

    role: str
    content: str
    is_supervised: bool
    extra: str = ""


Conversation = tuple[Turn, ...]


# Who may speak after whom, first whoever mostly does; a system turn stands for the beginning.
FOLLOWERS = {"system": ("human",), "human": ("bot",), "bot": ("human", "tool"), "tool": ("bot", "tool")}


@lru_cache(maxsize=256)  # a file with a wrong role has it in every record
def role_fix(role: str) -> str:
    """What to write in place of an unknown role."""
    nearest = get_close_matches(role.lower(), ROLES, n=1)
    use = f'write "{nearest[0]}"' if nearest else "use another"
    return f"{use} (the roles are {', '.join(ROLES)})"


def check_order(conversation: Conversation) -> None:
    """Raises RecordError unless the turns alternate, end with a bot turn, and one of them is supervised."""
    if not any(turn.role == "bot" for turn in conversation):
        raise RecordError("the conversation has no bot turn")
    before = "system"
    for number, turn in enumerate(conversation, start=1):
        if turn.role == "system":
            if number > 1:
                raise RecordError(f"round {number} is a system turn, which may only be the first")
            continue
        if turn.role not in FOLLOWERS[before]:
            raise RecordError(f"round {number} is a {turn.role} turn where a {FOLLOWERS[before][0]} turn has to come")
        before = turn.role
    if before != "bot":
        raise RecordError(f"the last round is a {before} turn without an answer")
    if not any(turn.is_supervised for turn in conversation):
        raise RecordError('every bot turn has "train": false, which leaves nothing to learn')


def with_last_answer(conversation: Conversation) -> Conversation:
    """The conversation with no bot turn trained on but the last; raises RecordError if that one is not to be."""
    last = max((position for position, turn in enumerate(conversation) if turn.role == "bot"), default=-1)
    if last >= 0 and not conversation[last].is_supervised:
        raise RecordError("the last bot turn is not to be trained on, which leaves nothing to learn")
    return tuple(
        turn if position == last or turn.role != "bot" else replace(turn, is_supervised=False)
        for position, turn in enumerate(conversation)
    )
