"""The chat in a real terminal: what is typed and what is on the screen."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\x1b\][^\x07]*\x07")


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, arguments: list[str], state_dir: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        script = "from mft_infer.cli import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm", "XDG_STATE_HOME": str(state_dir), "PROMPT_TOOLKIT_NO_CPR": "1"},
        )
        os.close(slave)
        self._unread = ""

    def wait_for(self, text: str, seconds: float = 90) -> str:
        """Read until the text is there; what came before it, without escape sequences. What follows is not lost."""
        deadline = time.monotonic() + seconds
        while text not in (seen := ESCAPES.sub("", self._unread)):
            ready, _, _ = select.select([self._master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} did not come after {seen[-2000:]!r}"
            self._unread += os.read(self._master, 65536).decode("utf-8", "replace")
        before, _, self._unread = seen.partition(text)
        return before

    def wait_for_more(self, num_characters: int) -> None:
        """Read until so many characters are unread, escape sequences among them."""
        while len(self._unread) < num_characters:
            ready, _, _ = select.select([self._master], [], [], 90)
            assert ready, f"nothing came after {self._unread!r}"
            self._unread += os.read(self._master, 65536).decode("utf-8", "replace")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        os.kill(self._process.pid, signal.SIGINT)

    def end(self) -> int:
        """The exit code, after the rest of the output."""
        try:
            while os.read(self._master, 65536):
                pass
        except OSError:
            pass  # the program has closed its side
        os.close(self._master)
        return self._process.wait(timeout=60)


@pytest.mark.slow
def test_a_conversation_in_a_terminal(model_dir, tmp_path):
    terminal = Terminal(["chat", str(model_dir), "--max-new-tokens", "4"], tmp_path / "state")
    terminal.wait_for(">")
    terminal.type("two\x1b\rlines\r")
    terminal.wait_for("cut off")
    terminal.wait_for(">")
    terminal.type("/tok\t")
    terminal.wait_for("ens")
    terminal.type("\r")
    terminal.wait_for("of 96 tokens")
    terminal.wait_for(">")
    terminal.type("/nothing\r")
    terminal.wait_for("Error: there is no command /nothing")
    terminal.wait_for(">")
    terminal.type("half a line\x03")
    terminal.type(f"/save {tmp_path / 'chat.jsonl'}\r")
    terminal.wait_for("appended to")
    terminal.wait_for(">")
    terminal.type("/params max_new_tokens=5\r")
    terminal.wait_for("max_new_tokens=5, temperature=0.0")
    terminal.wait_for(">")
    terminal.type("/retry\r")
    terminal.wait_for("cut off")
    terminal.wait_for(">")
    terminal.type("\x04")
    assert terminal.end() == 0
    rounds = json.loads((tmp_path / "chat.jsonl").read_text())["chat_rounds"]
    assert rounds[0] == {"role": "human", "content": "two\nlines"}
    history = (tmp_path / "state" / "mft-infer" / "chat_history").read_text()
    assert "+two\n+lines\n" in history


@pytest.mark.slow
def test_an_interrupt_stops_the_answer_only(big_cache_model, tmp_path):
    terminal = Terminal(["chat", str(big_cache_model), "--max-new-tokens", "1900"], tmp_path / "state")
    terminal.wait_for(">")
    terminal.type("fox\r")
    terminal.wait_for_more(400)  # what is typed is shown by less; an answer of 1,900 tokens by far more
    terminal.interrupt()
    terminal.wait_for("(stopped)")
    assert terminal.wait_for(">").strip() == ""  # nothing of the answer comes after it
    terminal.type("/tokens\r")
    tokens = int(re.search(r"(\d+)$", terminal.wait_for(" of 2048 tokens"))[1])
    assert tokens < 1800
    terminal.wait_for(">")
    terminal.type("/exit\r")
    assert terminal.end() == 0
