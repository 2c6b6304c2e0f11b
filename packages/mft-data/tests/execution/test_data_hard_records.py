"""Many bad records and huge ones: the work stays linear, and memory that of a chunk for each worker."""

import os
import resource

import orjson
import pytest
from click.testing import CliRunner

from mft_data.cli import main


@pytest.fixture
def run(tmp_path, tokenizer_dir, small_chunks):
    """Builds `t.jsonl` to a folder of this name; returns the result."""

    def run(name, *options, exit_code=0):
        arguments = ["build", f"t={tmp_path / 't.jsonl'}", str(tmp_path / name), "--tokenizer", str(tokenizer_dir)]
        result = CliRunner().invoke(main, [*arguments, "--seq-length", "128", "--workers", "1", *options])
        assert result.exit_code == exit_code, result.output
        return result

    return run


def write(path, entries):
    """Writes records as lines, blank ones for None."""
    path.write_bytes(b"".join((b"" if entry is None else orjson.dumps(entry)) + b"\n" for entry in entries))


def rejects_of(dataset):
    """File and line of each refused record."""
    return [
        (reject["file"], reject["line"])
        for reject in map(orjson.loads, (dataset / "rejects.jsonl").read_bytes().splitlines())
    ]


def test_refused_records_are_numbered_without_reading_a_file_again(run, tmp_path, helpers, monkeypatch):
    entries = [{} if number % 2 else helpers.record(number) for number in range(1500)]
    entries[40:50] = [None] * 10
    write(tmp_path / "t.jsonl", entries)
    from mft_data.execution import read_chunk

    calls, lines_before = [], read_chunk.lines_before
    monkeypatch.setattr(read_chunk, "lines_before", lambda *where: calls.append(where) or lines_before(*where))
    run("out", "--max-rejects", "60%")
    assert rejects_of(tmp_path / "out") == [
        ("t.jsonl", number) for number, entry in enumerate(entries, 1) if entry == {}
    ]
    assert len(calls) <= 1


def test_a_percentage_ends_the_build_when_it_cannot_hold_any_more(run, tmp_path, helpers, monkeypatch):
    write(tmp_path / "t.jsonl", [{} if number < 300 else helpers.record(number) for number in range(1500)])
    from mft_data.execution import chunk_store

    chunks, encode_chunk = [], chunk_store.encode_chunk
    monkeypatch.setattr(chunk_store, "encode_chunk", lambda *rest: chunks.append(1) or encode_chunk(*rest))
    error = run("out", "--max-rejects", "10%", exit_code=1).stderr
    assert "of at most 1500 records were refused, more than 10 %" in error
    stopped_after = len(chunks)
    run("whole", "--max-rejects", "20%")
    assert stopped_after < len(chunks) - stopped_after


def test_a_last_line_without_an_end_is_a_record_too(run, tmp_path, helpers):
    write(tmp_path / "t.jsonl", [{}, helpers.record(1)])
    (tmp_path / "t.jsonl").write_bytes((tmp_path / "t.jsonl").read_bytes().rstrip(b"\n"))
    run("out", "--max-rejects", "50%")
    run("out2", "--max-rejects", "49%", exit_code=1)


@pytest.mark.parametrize(("allowed", "exit_code"), [("6", 0), ("5", 1), ("0.9%", 1), ("50%", 0)])
def test_join_applies_the_limit_to_all_parts_together(run, tmp_path, helpers, allowed, exit_code):
    write(tmp_path / "t.jsonl", [{} if number % 100 == 5 else helpers.record(number) for number in range(600)])
    for part in (1, 2):
        run(f"part{part}", "--part", f"{part}/2", "--max-rejects", allowed)
    parts = [str(tmp_path / f"part{part}") for part in (1, 2)]
    result = CliRunner().invoke(main, ["join", *parts, str(tmp_path / "joined")])
    assert result.exit_code == exit_code, result.output
    assert (tmp_path / "joined").exists() == (exit_code == 0)
    if exit_code:
        assert "records were refused" in result.stderr
        assert CliRunner().invoke(main, ["join", *parts, str(tmp_path / "joined"), "--max-rejects", "6"]).exit_code == 0
    assert rejects_of(tmp_path / "joined") == [("t.jsonl", number) for number in range(6, 600, 100)]


def test_parts_with_different_limits_need_one_for_the_whole(run, tmp_path, helpers):
    write(tmp_path / "t.jsonl", [helpers.record(number) for number in range(600)])
    for part in (1, 2):
        run(f"part{part}", "--part", f"{part}/2", "--max-rejects", str(part))
    parts = [str(tmp_path / f"part{part}") for part in (1, 2)]
    result = CliRunner().invoke(main, ["join", *parts, str(tmp_path / "joined")])
    assert "the parts were built with different --max-rejects, give --max-rejects here" in result.stderr


def peak_bytes(action):
    """The most memory that a copy of this process takes for an action, beyond what it has now."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
            os.write(writer, b"%d" % resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return (int(os.read(reader, 20)) - before) * 1024


@pytest.fixture
def usual_chunks(small_chunks, monkeypatch):
    """Chunks of the size that builds have."""
    monkeypatch.setattr("mft_data.reading.chunks.MIN_CHUNK_BYTES", 2 << 20)


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_a_line_of_many_megabytes_is_overlong_without_being_encoded(run, usual_chunks, tmp_path, helpers, overlong):
    size = 24 << 20
    text = ("def add(a, b): return a + b\n" * (size // 28 + 1))[:size]
    answer = [{"role": "human", "content": "add"}, {"role": "bot", "content": text}]
    write(tmp_path / "t.jsonl", [*(helpers.record(number) for number in range(9)), {"chat_rounds": answer}])
    # The line as bytes, decoded, in the template's text, and where it is checked: not a hundred times.
    assert peak_bytes(lambda: run("out", "--overlong", overlong)) < 12 * size
    run("out2", "--overlong", overlong, "--dedup", "near")
    conversations = orjson.loads((tmp_path / "out2" / "manifest.json").read_bytes())["tasks"][0]["conversations"]
    assert (conversations["read"], conversations["overlong_dropped"]) == (10, int(overlong == "drop"))
    assert conversations["overlong_truncated"] == int(overlong == "truncate")
    error = run("out3", "--overlong", "error", exit_code=1).stderr
    assert "characters, too many for the 128 of a row" in error
    assert "t.jsonl line 10" in error


def test_a_truncated_text_of_any_length_has_the_ids_of_a_longer_beginning(families):
    from mft_data.reading.conversation import Turn
    from mft_data.rows.overlong import longest_text, shortened

    for family in families.values():
        text = "def add(a, b):\n    return a + b  # sums\n" * 400
        conversation = (Turn("human", "h", False), Turn("bot", text, True))
        stretches = family.encoder.render(conversation)
        whole = family.encoder.encode_rendered([stretches]).input_ids[:64]
        limit = longest_text(64, family.encoder.longest_token)
        cut = family.encoder.encode_rendered([shortened(stretches, limit)])
        assert len(cut.input_ids) >= 64
        assert (cut.input_ids[:64] == whole).all()


def test_no_text_above_the_limit_fits_a_row(families):
    for family in families.values():
        longest = max(family.tokenizer.get_vocab(), key=len)
        assert family.encoder.longest_token >= len(longest)


def test_rejects_do_not_gather_in_memory(run, usual_chunks, tmp_path, helpers):
    bad = b'{"chat_rounds": [{"role": "nobody at all, under this long name", "content": ""}]}\n' * 200_000
    (tmp_path / "t.jsonl").write_bytes(bad + orjson.dumps(helpers.record(1)) + b"\n")
    assert peak_bytes(lambda: run("out", "--max-rejects", "100%")) < 60 << 20
