"""JSON arrays, Parquet and Arrow files: their records are those of the same lines of JSON."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import orjson
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mft_data.cli import main
from mft_data.errors import DataError
from mft_data.execution import chunk_store, encode_chunk
from mft_data.reading import chunks, json_array
from mft_data.reading.json_array import array_lines
from mft_data.reading.lines import read_lines
from mft_data.reading.sources import find_files


def record(number):
    rounds = [
        {"role": "user", "content": f"add\n{number} é"},
        {"role": "assistant", "content": "sum " * (number % 9 + 1)},
    ]
    return {"messages": rounds} | ({"weight": 2.0} if number % 3 else {})


RECORDS = [record(number) for number in range(700)]
TABLE = pyarrow.Table.from_pylist([{"weight": None, **entry} for entry in RECORDS])


def write(kind, path):
    """The records as one kind of file has them."""
    if kind == "json":
        path.write_text(json.dumps(RECORDS, indent=2, ensure_ascii=False))
    elif kind == "parquet":
        pyarrow.parquet.write_table(TABLE, path, row_group_size=150)
    else:
        maker = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with pyarrow.OSFile(str(path), "wb") as handle, maker(handle, TABLE.schema) as writer:
            writer.write_table(TABLE, 150)


@pytest.fixture
def build(tmp_path, tokenizer_dir, monkeypatch):
    monkeypatch.setattr(chunks, "MIN_CHUNK_BYTES", 16_000)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 1)

    def build(source, out, *options, exit_code=0):
        arguments = ["build", str(source), str(tmp_path / out), "--tokenizer", str(tokenizer_dir)]
        result = CliRunner().invoke(main, [*arguments, "--seq-length", "128", "--workers", "1", *options])
        assert result.exit_code == exit_code, result.output
        return result

    return build


@pytest.mark.parametrize("kind", ["json", "parquet", "stream", "file"])
def test_every_kind_of_file_gives_the_rows_of_its_lines(tmp_path, build, kind):
    suffix = kind if kind in ("json", "parquet") else "arrow"
    for name in ("lines", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "lines" / "a.jsonl").write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in RECORDS))
    write(kind, tmp_path / "other" / f"a.{suffix}")
    if suffix == "arrow":  # what datasets leave beside it, and what it does not name
        (tmp_path / "other" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
        write(kind, tmp_path / "other" / "cache-1.arrow")
    build(f"t={tmp_path / 'lines'}", "one", "--limit", "600")
    build(f"t={tmp_path / 'other'}", "two", "--limit", "600")
    one, two = (orjson.loads((tmp_path / name / "manifest.json").read_bytes())["tasks"][0] for name in ("one", "two"))
    for task in (one, two):
        task["splits"] = {
            split: {name: counts[name] for name in ("conversations", "tokens")}
            for split, counts in task["splits"].items()
        }
        assert [file["file"] for file in task.pop("sources")] in (["a.jsonl"], [f"a.{suffix}"])
    assert one == two
    # Broken off, gone on with, and in parts.
    bad = [*RECORDS[:400], {"messages": []}, *RECORDS[400:]]
    if kind == "json":
        (tmp_path / "other" / "a.json").write_text(json.dumps(bad))
        error = build(f"t={tmp_path / 'other'}", "three", exit_code=1).stderr
        assert f'field "messages" is empty, in {tmp_path / "other" / "a.json"} line 401' in error
        build(f"t={tmp_path / 'other'}", "three", "--resume", "--max-rejects", "1")


def tree(folder):
    """Name and content of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def edited(path, kind):
    """Changes one word of a late record, and nothing else."""
    changed = [orjson.loads(orjson.dumps(entry)) for entry in RECORDS]
    changed[640]["messages"][0]["content"] = changed[640]["messages"][0]["content"].replace("add", "sub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "RECORDS", changed)
        patch.setattr(
            sys.modules[__name__], "TABLE", pyarrow.Table.from_pylist([{"weight": None, **e} for e in changed])
        )
        write(kind, path)


KINDS = {"json": "a.json", "parquet": "a.parquet", "file": "a.arrow", "stream": "a.arrow"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_gone_on_with_after_a_break_and_not_after_an_edit(build, tmp_path, kind, monkeypatch):
    path = tmp_path / KINDS[kind]
    write(kind, path)
    original = path.read_bytes()
    build(f"t={path}", "plain")
    finished = encode_chunk.encode_chunk
    done = []

    def break_off(work, encoder, chunk, *rest):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(chunk.key)
        return finished(work, encoder, chunk, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_store, "encode_chunk", break_off)
        stopped = build(f"t={path}", "out", exit_code=1).stderr
    kept = f"the finished work is kept in {tmp_path / '.out.partial'}: give --resume to go on with it, or --overwrite"
    assert stopped == f"\n{kept} to begin anew\nAborted!\n"
    edited(path, kind)
    error = build(f"t={path}", "out", "--resume", exit_code=1).stderr
    assert error.count("\n") == 1
    assert "are not those of the build to resume" in error or "has changed since" in error
    assert path.name in error
    path.write_bytes(original)
    encoded = []
    monkeypatch.setattr(chunk_store, "encode_chunk", lambda *given: encoded.append(given[2].key) or finished(*given))
    build(f"t={path}", "out", "--resume")
    assert done
    assert not set(done) & set(encoded)
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")


@pytest.mark.parametrize("kind", ["parquet", "stream"])
def test_a_table_is_gone_on_with_after_a_kill(tmp_path, tokenizer_dir, kind):
    path = tmp_path / KINDS[kind]
    write(kind, path)
    program = (
        "import sys; from mft_data.reading import chunks; chunks.MIN_CHUNK_BYTES, chunks.CHUNK_ROWS = 16_000, 1; "
        "from mft_data.cli import main; main(sys.argv[1:])"
    )
    options = ["--tokenizer", str(tokenizer_dir), "--seq-length", "128", "--workers", "1"]

    def command(out, *more):
        return [sys.executable, "-c", program, "build", f"t={path}", str(tmp_path / out), *options, *more]

    subprocess.run(command("plain"), check=True, capture_output=True)
    process = subprocess.Popen(
        command("out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any((tmp_path / ".out.partial").glob("chunks/[0-9]*.[0-9]*")):
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if not (tmp_path / "out").exists():
        subprocess.run(command("out", "--resume"), check=True, capture_output=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")


def test_a_saved_dataset_with_splits_asks_for_one(tmp_path):
    # As `DatasetDict.save_to_disk` writes it.
    (tmp_path / "saved" / "train").mkdir(parents=True)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    write("stream", tmp_path / "saved" / "train" / "data-00000-of-00001.arrow")
    (tmp_path / "saved" / "train" / "dataset_info.json").write_text('{"features": {}}')
    (tmp_path / "saved" / "train" / "state.json").write_text(
        '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}'
    )
    with pytest.raises(DataError, match=r"holds the splits of a dataset \(train\)"):
        find_files((tmp_path / "saved",))
    (file,) = find_files((tmp_path / "saved" / "train",))
    assert [orjson.loads(line) for _, line in read_lines(file.path)] == RECORDS


@given(
    values=st.lists(
        st.recursive(
            st.none() | st.integers() | st.text() | st.floats(allow_nan=False),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
        max_size=6,
    ),
    indent=st.sampled_from([None, 0, 3]),
    is_ascii=st.booleans(),
    block=st.integers(1, 40),
)
def test_an_array_has_its_elements_whatever_the_blocks(tmp_path_factory, values, indent, is_ascii, block):
    content = json.dumps(values, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "BLOCK_BYTES", block)
        patch.setattr(json_array, "LONGEST_LITERAL", 40)
        lines = list(array_lines(tmp_path_factory.getbasetemp(), io.BytesIO(content)))
    assert [json.loads(line) for line in lines] == values
    assert all(line.count(b"\n") == 1 for line in lines)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[{}, {}", "the array is not JSON after 2 records (it has no end)"),
        ("[{} {}]", "the array is not JSON after 1 record (a comma is missing)"),
        ("[{}, ]", "the array is not JSON after 1 record (Expecting value)"),
        ("[{}, {'a': 1}" + " " * 99 + "]", "after 1 record (Expecting property name enclosed in double quotes)"),
        ("[{}] x", "the array is not JSON after 1 record (something follows it)"),
        ('[{"a": "b}]', "the array is not JSON after 0 records (Unterminated string starting at)"),
    ],
)
def test_broken_arrays_are_refused(tmp_path, content, reason):
    with pytest.raises(DataError, match=re.escape(reason)):
        list(array_lines(tmp_path, io.BytesIO(content.encode())))


def test_broken_tables_are_refused(tmp_path):
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"no table at all")
        with pytest.raises(DataError, match="the table cannot be read"):
            list(read_lines(tmp_path / name))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"image": b"x"}]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="row 1 has a value that JSON has not"):
        list(read_lines(tmp_path / "b.parquet"))


def test_lines_in_a_json_file_are_read_if_it_is_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"text": "a"}\n\n{"text": "b"}')
    (file,) = find_files((tmp_path / "a.json",))
    assert [number for number, _ in read_lines(file.path)] == [1, 3]
    with pytest.raises(DataError, match="has no file that ends in"):
        find_files((tmp_path,))
