"""A conversation with a model, or with two side by side, on a terminal or over pipes."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import click

from mft_infer.conversation.console import chat_on_terminal
from mft_infer.conversation.pipe import chat_over_pipe
from mft_infer.conversation.session import Session
from mft_infer.errors import InferError
from mft_infer.model.generation_defaults import with_defaults
from mft_infer.model.language_model import load_language_model
from mft_infer.settings import AnswerSettings, ModelSettings, PromptSettings


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """The options of `mft-infer chat`, under the names that they have there."""

    model: ModelSettings
    answer: AnswerSettings
    prompt: PromptSettings
    given: frozenset[str]
    generation_config: bool
    beside: str | None


def chat(model: str, options: ChatOptions) -> None:
    """Talk over stdin and stdout: with an editor and commands on a terminal, one message a line from a pipe."""
    sessions = [_session(model, options.model, options)]
    if options.beside is not None:
        sessions.append(_session(options.beside, replace(options.model, base=None), options))
    if sys.stdin.isatty():
        chat_on_terminal(sessions)
    else:
        chat_over_pipe(sessions, _lines(sys.stdin.buffer), lambda text: click.echo(text.encode(), nl=False))


def _lines(stream: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InferError("the message is no UTF-8", where=f"<stdin> line {number}") from error


def _session(name: str, settings: ModelSettings, options: ChatOptions) -> Session:
    language_model = load_language_model(name, settings)
    defaults = language_model.generation_defaults
    answer = with_defaults(options.answer, defaults, given=options.given, wanted=options.generation_config)
    return Session(language_model, answer, options.prompt)
