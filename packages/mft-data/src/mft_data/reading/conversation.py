"""The conversation: its turns, who may speak when, and the roles that records name."""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

from mft_data.errors import RecordError

# The roles a record may use, and the three that conversations are made of.
ROLES = {
    "system": "system",
    "developer": "system",
    "human": "human",
    "user": "human",
    "bot": "bot",
    "assistant": "bot",
    "gpt": "bot",
}

# Opens the private names of special tokens (see special_tokens.py); a Unicode noncharacter, never valid in interchange.
RESERVED_CHARACTER = "\ufdd0"


@dataclass(frozen=True, slots=True)
class Turn:
    """One round; `role` is system, human, bot, or text for a document without roles."""

    role: str
    content: str
    is_supervised: bool


Conversation = tuple[Turn, ...]


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
    expected = "human"
    for number, turn in enumerate(conversation, start=1):
        if turn.role == "system":
            if number > 1:
                raise RecordError(f"round {number} is a system turn, which may only be the first")
            continue
        if turn.role != expected:
            raise RecordError(f"round {number} is a {turn.role} turn where a {expected} turn has to come")
        expected = "bot" if expected == "human" else "human"
    if expected == "bot":
        raise RecordError("the last round is a human turn without an answer")
    if not any(turn.is_supervised for turn in conversation):
        raise RecordError('every bot turn has "train": false, which leaves nothing to learn')
