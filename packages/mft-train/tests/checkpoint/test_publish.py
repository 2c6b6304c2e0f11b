"""A directory that takes the place of an older one."""

import threading

import pytest

from mft_train.checkpoint import publish as module
from mft_train.checkpoint.publish import discard, publish


def write(directory, text):
    directory.mkdir()
    (directory / "file").write_text(text)
    return directory


def test_there_is_no_moment_without_a_whole_directory(tmp_path):
    target = write(tmp_path / "final", "0")
    seen, missed, is_done = set(), [], threading.Event()

    def watch():
        while not is_done.is_set():
            try:
                seen.add(target.stat().st_ino)
            except FileNotFoundError:
                missed.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(1, 200):
        publish(write(tmp_path / ".final.partial", str(number)), target)
    is_done.set()
    watcher.join()
    assert missed == []
    assert len(seen) > 1
    assert (target / "file").read_text() == "199"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_the_new_one_takes_the_name_and_the_old_one_goes(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(module, "exchange", lambda *_: False)
    publish(write(tmp_path / ".new", "1"), tmp_path / "step")
    publish(write(tmp_path / ".new", "2"), tmp_path / "step")
    assert (tmp_path / "step" / "file").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_what_is_discarded_is_gone_and_what_was_not_there_is_no_error(tmp_path):
    discard(write(tmp_path / "final", "0"))
    discard(tmp_path / "final")
    assert list(tmp_path.iterdir()) == []
