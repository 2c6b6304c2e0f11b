"""A chat on a terminal: messages and commands are typed, answers grow, Ctrl-C stops an answer only."""

import sys
from collections.abc import Generator
from itertools import zip_longest
from typing import TYPE_CHECKING

import click

from mft_infer.conversation.commands import run_command
from mft_infer.conversation.session import Session
from mft_infer.conversation.terminal import REFRESHES_PER_SECOND, Tail, answer_panel, message_editor, without_echo
from mft_infer.errors import InferError, PromptError

if TYPE_CHECKING:
    from rich.console import Console


def chat_on_terminal(sessions: list[Session]) -> None:
    """Talk until /exit or Ctrl-D; the answers of several sessions stand side by side."""
    from rich.console import Console

    console = Console(highlight=False)
    editor = message_editor(sys.stdout if sys.stdout.isatty() else sys.stderr)
    click.echo("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends", err=True)
    while True:
        try:
            line = editor.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if line.strip() == "/exit":
            return
        if line.strip():
            take_turn(line, sessions, console)


def take_turn(line: str, sessions: list[Session], console: "Console") -> None:
    """Carry out a command or answer a message; what goes wrong is told, and the chat goes on."""
    from rich.console import Console

    before = [list(session.rounds) for session in sessions]
    try:
        _check_text(line)
        questions: list[str | None] = [line for _ in sessions]
        if line.strip() == "/retry":
            questions = [session.retry() for session in sessions]
        elif line.startswith("/"):
            # By the terminal's width, between words.
            Console(stderr=True, highlight=False).print(run_command(line, sessions), markup=False, emoji=False)
            return
        if None in questions:
            raise InferError("there is no question to answer again")
        asked = zip(sessions, questions, strict=True)
        _answer([session.ask(question or "") for session, question in asked], sessions, console)
    except (PromptError, KeyboardInterrupt) as error:
        for session, rounds in zip(sessions, before, strict=True):
            session.rounds[:] = rounds  # as they were before a /retry
        if isinstance(error, PromptError):
            InferError(error.reason, fix="say less, or begin anew with /reset").show()
        else:
            click.echo("(stopped)", err=True)  # before an answer has begun
    except InferError as error:
        error.show()
    except OSError as error:
        InferError(error.strerror or str(error), where=error.filename and str(error.filename)).show()


def _check_text(line: str) -> None:
    """Refuses what a terminal sends that is no UTF-8; the editor hands it on as surrogates."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise InferError("the message is no UTF-8") from error


def _answer(answers: list[Generator[str, None, None]], sessions: list[Session], console: "Console") -> None:
    from rich.live import Live

    names = [session.language_model.name for session in sessions]
    texts = ["" for _ in answers]
    if not console.is_terminal:
        _answer_plainly(answers, names)
    else:
        is_stopped = False
        try:
            with without_echo(), Live(console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True) as live:
                for pieces in zip_longest(*answers, fillvalue=""):
                    texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
                    live.update(Tail(answer_panel(texts, names)))
        except KeyboardInterrupt:
            is_stopped = True
        finally:
            for answer in answers:
                answer.close()
            console.print(answer_panel(texts, names))
        if is_stopped:
            click.echo("(stopped)", err=True)
    _tell_ends(sessions)


def _answer_plainly(answers: list[Generator[str, None, None]], names: list[str]) -> None:
    for answer, name in zip(answers, names, strict=True):
        if len(names) > 1:
            click.echo(f"== {name} ==")
        try:
            for piece in answer:
                click.echo(piece, nl=False)
        except KeyboardInterrupt:
            click.echo("(stopped)", err=True)
        click.echo()


def _tell_ends(sessions: list[Session]) -> None:
    for session in sessions:
        prefix = f"{session.language_model.name}: " if len(sessions) > 1 else ""
        if session.finish_reason == "length":
            click.echo(f"({prefix}cut off: max_new_tokens or the model's context is used up)", err=True)
        if session.num_left_out:
            click.echo(f"({prefix}made without the first {session.num_left_out} rounds: the context is full)", err=True)
