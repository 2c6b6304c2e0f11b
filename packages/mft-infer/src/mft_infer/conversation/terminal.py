"""The look of a chat on a terminal: an editor for messages, answers as Markdown while they grow."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_infer.conversation.commands import COMMANDS

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from rich.console import Console, RenderableType

REFRESHES_PER_SECOND = 10


class Tail:
    """The last lines of a renderable, as many as the terminal has; what grows is seen where it grows."""

    def __init__(self, renderable: "RenderableType") -> None:
        self._renderable = renderable

    def __rich_console__(self, console: "Console", options: Any) -> Iterator["RenderableType"]:
        from rich.segment import Segment, Segments

        lines = console.render_lines(self._renderable, options.update(height=None), pad=False)
        shown = lines[-max(console.height - 1, 1) :]
        yield Segments([segment for line in shown for segment in [*line, Segment.line()]])


def answer_panel(texts: list[str], names: list[str]) -> "RenderableType":
    """One answer as Markdown, several side by side under the names of their models."""
    from rich.markdown import Markdown
    from rich.table import Table

    if len(texts) == 1:
        return Markdown(texts[0])
    table = Table(*names, expand=True)
    table.add_row(*map(Markdown, texts))
    return table


def message_editor(output: Any) -> "PromptSession[str]":
    """An editor with many lines, history across chats and completion of commands; `output` is where it shows."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output.defaults import create_output

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    for new_line in (("escape", "enter"), ("c-j",)):
        keys.add(*new_line)(lambda event: event.current_buffer.insert_text("\n"))
    return PromptSession(
        "> ",
        multiline=True,
        key_bindings=keys,
        prompt_continuation=". ",
        history=FileHistory(str(history_path())),
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
        output=create_output(stdout=output),
    )


@contextmanager
def without_echo() -> Iterator[None]:
    """Keeps what is typed while an answer grows off the screen; it is read when the editor is back."""
    import termios

    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = list(before)
    quiet[0] &= ~termios.ICRNL  # an Enter typed ahead stays one, not the Ctrl-J that begins a new line
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def history_path() -> Path:
    """Where typed messages are kept, in the user's own state directory."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "mft-infer" / "chat_history"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)
    return path
