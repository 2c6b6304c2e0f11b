"""What a run shows: lines for a log, a live view for a terminal of any size, looked at on a real pseudo-terminal."""

import os
import pty
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from mft_train.config.config import RunConfig
from mft_train.running.interrupts import Interrupts
from mft_train.tracking.metrics import MetricsWriter
from mft_train.tracking.progress_display import LiveView, describe
from mft_train.tracking.trackers import tell

TRAIN = {
    "global_step": 3,
    "loss": 1.5,
    "task_losses": {"sql": 1.25, "docs": 1.75},
    "task_weights": {"sql": 0.75, "docs": 1.25},
    "learning_rate": 1e-4,
    "tokens_per_second": 3956.2,
    "peak_memory_bytes": 3 * 2**29,
}
VALIDATION = {"global_step": 2, "loss": 2.25, "task_losses": {"sql": 2.0, "docs": 2.5}, "perplexity": 9.4877}


def test_events_are_lines_of_text():
    assert describe("train", TRAIN, 10) == (
        "step 3/10  loss 1.5000  (sql 1.2500  docs 1.7500)  lr 1.00e-04  3,956 tokens/s  1.50 GiB"
    )
    assert describe("validation", VALIDATION, 10) == (
        "step 2/10  validation loss 2.2500  perplexity 9.488  (sql 2.0000  docs 2.5000)"
    )
    assert "perplexity" not in describe("validation", VALIDATION | {"perplexity": None}, 10)
    assert describe("checkpoint", {"global_step": 2, "path": "x"}, 10) == "step 2/10  checkpoint  path x"


def shown(width, height, *happened):
    """The lines of the live view after some events, on a terminal of this size."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(width=width, height=height, force_terminal=True, record=True, file=nowhere)
        view = LiveView(console, 10, 0)
        for event, values in happened:
            view.show(event, values)
        view.close()
        console.export_text(clear=True)
        console.print(view.view())
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_view_has_every_number_of_the_last_step_and_the_last_validation():
    progress, status, *table = shown(80, 24, ("validation", VALIDATION), ("train", TRAIN))
    assert progress.startswith("step  3/10 ")
    assert progress.endswith(" left")
    assert status == "loss 1.5000  lr 1.00e-04  3,956 tokens/s  1.50 GiB"
    assert [line.split() for line in table] == [
        ["task", "loss", "validation", "weight"],
        ["sql", "1.2500", "2.0000", "0.7500"],
        ["docs", "1.7500", "2.5000", "1.2500"],
    ]


def test_a_task_that_the_last_batch_lacked_keeps_its_loss():
    later = TRAIN | {"global_step": 4, "task_losses": {"sql": 1.0}}
    assert [line.split() for line in shown(80, 24, ("train", TRAIN), ("train", later))[3:]] == [
        ["sql", "1.0000", "-", "0.7500"],
        ["docs", "1.7500", "-", "1.2500"],
    ]


def test_a_task_that_is_only_validated_is_shown_too():
    only_sql = TRAIN | {"task_losses": {"sql": 1.25}, "task_weights": {"sql": 1.0}}
    assert shown(80, 24, ("validation", VALIDATION), ("train", only_sql))[-1].split() == ["docs", "-", "2.5000", "-"]


@pytest.mark.parametrize(("width", "height"), [(30, 8), (40, 10), (200, 50)])
def test_the_view_fits_any_terminal(width, height):
    names = [f"task-with-a-rather-long-name-{index}" for index in range(60)]
    many = TRAIN | {"task_losses": dict.fromkeys(names, 1.0), "task_weights": dict.fromkeys(names, 1.0)}
    lines = shown(width, height, ("train", many))
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert re.fullmatch(r"and \d+ more", lines[-1].strip())


def test_a_run_on_a_terminal_draws_in_place(tmp_path, monkeypatch):
    config = RunConfig(model="base", dataset="dataset", output=str(tmp_path), max_steps=10, trackers=[])
    ours, terminal = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    written = []
    reader = threading.Thread(target=lambda: written.extend(iter(lambda: read_terminal(ours), b"")))
    reader.start()
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with MetricsWriter(config, tmp_path, 0, 10, is_active=True) as metrics:
            metrics.write("validation", **VALIDATION)
            metrics.write("train", **TRAIN)
            tell("tracker mlflow fails")
            Interrupts(is_talking=True).note(signal.SIGINT, None)
    reader.join()
    os.close(ours)
    text = b"".join(written).decode().replace("\r\n", "\n")
    assert "\x1b[1A\x1b[2K" in text, "lines are drawn over"
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    assert "step 2/10  validation loss 2.2500  perplexity 9.488  (sql 2.0000  docs 2.5000)\n" in plain
    for line in ("tracker mlflow fails", "SIGINT: a checkpoint is written after this step, then the run ends"):
        assert re.search(rf"{line} *\nstep", plain), "the view is drawn below it"
    assert plain.endswith(
        "task    loss  validation  weight  \nsql   1.2500      2.0000  0.7500  \ndocs  1.7500      2.5000  1.2500  \n"
    )


def read_terminal(terminal):
    """What the other side wrote; nothing after it has closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
