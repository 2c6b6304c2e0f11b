"""A chat over pipes: each line is a message, each answer ends with a newline; no commands, no colour."""

from collections.abc import Callable, Iterable

import click

from mft_infer.conversation.session import Session
from mft_infer.errors import InferError, PromptError


def chat_over_pipe(sessions: list[Session], lines: Iterable[str], write: Callable[[str], None]) -> None:
    """Answer every line that is not blank; a message that cannot be answered ends it with an InferError."""
    for line in lines:
        if not line.strip():
            continue
        for session in sessions:
            if len(sessions) > 1:
                write(f"== {session.language_model.name} ==\n")
            try:
                for piece in session.ask(line):
                    write(piece)
            except PromptError as error:
                raise InferError(error.reason) from error
            write("\n")
            if session.finish_reason == "length":
                click.echo("(cut off: --max-new-tokens or the model's context is used up)", err=True)
            if session.num_left_out:
                click.echo(f"(made without the first {session.num_left_out} rounds: the context is full)", err=True)
