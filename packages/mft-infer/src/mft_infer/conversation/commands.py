"""The commands of a chat: lines that begin with a slash."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mft_infer.conversation.session import Session
from mft_infer.conversation.transcript import load_conversation, save_conversation
from mft_infer.errors import InferError
from mft_infer.settings import IS_RIGHT, AnswerSettings

# The settings that /params changes, and how their text is read.
PARAMS: dict[str, Callable[[str], Any]] = {
    "max_new_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
}


def run_command(line: str, sessions: list[Session]) -> str:
    """Carry out a command but for those that answer; what there is to say about it. Raises InferError or OSError."""
    name, _, argument = line.strip().partition(" ")
    if name not in COMMANDS:
        raise InferError(f"there is no command {name}", fix="/help lists them")
    action, _ = COMMANDS[name]
    return action(argument.strip(), sessions)


def _help(_: str, __: list[Session]) -> str:
    width = max(map(len, COMMANDS))
    lines = [f"{name:<{width}}  {meaning}" for name, (_action, meaning) in COMMANDS.items()]
    keys = ("Enter sends, Alt-Enter or Ctrl-J begins a new line, Ctrl-C stops an answer, Ctrl-D ends",)
    return "\n".join([*lines, *keys])


def _system(text: str, sessions: list[Session]) -> str:
    for session in sessions:
        session.prompt_settings = replace(session.prompt_settings, system=text or None)
    return "the system message is set" if text else "there is no system message any more"


def _reset(_: str, sessions: list[Session]) -> str:
    for session in sessions:
        session.rounds.clear()
    return "a new conversation"


def _undo(_: str, sessions: list[Session]) -> str:
    had_rounds = [session.undo() for session in sessions]
    return "the last question and its answer are taken back" if any(had_rounds) else "there is nothing to take back"


def _save(name: str, sessions: list[Session]) -> str:
    if not name:
        raise InferError("/save needs a FILE")
    if not sessions[0].rounds:
        raise InferError("there is nothing to save")
    conversations = [session.answered_messages() for session in sessions]
    if not any(conversations):
        raise InferError("there is no answer to save")
    for messages in filter(None, conversations):
        save_conversation(Path(name).expanduser(), messages)
    num_empty = sum(message["content"].strip() == "" for session in sessions for message in session.rounds[1::2])
    return f"appended to {name}" + (f", without {num_empty} with an empty answer" if num_empty else "")


def _load(name: str, sessions: list[Session]) -> str:
    if not name:
        raise InferError("/load needs a FILE")
    messages = load_conversation(Path(name).expanduser())
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    rounds = messages if system is None else messages[1:]
    for session in sessions:
        session.prompt_settings = replace(session.prompt_settings, system=system)
        session.rounds[:] = [dict(message) for message in rounds]
    count = len(rounds) // 2
    return "1 question and its answer" if count == 1 else f"{count} questions and their answers"


def _params(text: str, sessions: list[Session]) -> str:
    """Without arguments the settings are shown, with NAME=VALUE they are changed."""
    for change in text.split():
        name, _, value = change.partition("=")
        for session in sessions:
            session.answer_settings = _changed(session.answer_settings, name, value)
    settings = asdict(sessions[0].answer_settings)
    return ", ".join(f"{name}={settings[name]}" for name in PARAMS)


def _changed(settings: AnswerSettings, name: str, text: str) -> AnswerSettings:
    if name not in PARAMS:
        raise InferError(f'there is no parameter "{name}"', fix=f"the parameters are {', '.join(PARAMS)}")
    try:
        value = PARAMS[name](text)
    except ValueError as error:
        raise InferError(f'"{text}" is no value of {name}') from error
    if not IS_RIGHT[name](value):
        raise InferError(f'"{text}" is no value of {name}')
    return replace(settings, **{name: value})


def _tokens(_: str, sessions: list[Session]) -> str:
    lines = []
    for session in sessions:
        limit = session.language_model.context_length
        of = "" if limit is None else f" of {limit}"
        prefix = f"{session.language_model.name}: " if len(sessions) > 1 else ""
        lines.append(f"{prefix}{session.num_tokens()}{of} tokens")
    return "\n".join(lines)


def _unavailable(_: str, __: list[Session]) -> str:
    raise AssertionError("the console carries this command out")


COMMANDS: dict[str, tuple[Callable[[str, list[Session]], str], str]] = {
    "/help": (_help, "list the commands"),
    "/system": (_system, "TEXT: set the system message; without TEXT take it away"),
    "/reset": (_reset, "begin a new conversation"),
    "/undo": (_undo, "take back the last question and its answer"),
    "/retry": (_unavailable, "answer the last question again"),
    "/save": (_save, "FILE: append the conversation as a line of chat_rounds, which mft-data reads"),
    "/load": (_load, "FILE: go on with the last conversation in it"),
    "/params": (_params, "[NAME=VALUE ...]: show or change the settings of answers"),
    "/tokens": (_tokens, "how long the conversation is"),
    "/exit": (_unavailable, "end, as Ctrl-D does"),
}
