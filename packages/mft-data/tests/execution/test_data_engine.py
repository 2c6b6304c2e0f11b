"""The engine of a build: chunks, workers, kills and resumes, parts, other machines; the same bytes every way."""

import gzip
import itertools
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming import LocalDataset, MDSWriter

from mft_data.cli import main
from mft_data.dataset.mds import ShardWriter, mds_columns
from mft_data.encoding.encoder import EncodedBatch
from mft_data.reading import chunks
from mft_data.reading.chunks import part_of, plan_chunks
from mft_data.reading.lines import lines_before, read_lines
from mft_data.reading.sources import Source, SourceFile
from mft_data.rows.rows import encode_rows

SEQ_LENGTH = 128


def record(number):
    """A conversation of a length that depends on its number, and a text that tells which one it is."""
    answer = " ".join(f"return {number}" for _ in range(1 + number % 9))
    return {"chat_rounds": [{"role": "human", "content": f"add {number}"}, {"role": "bot", "content": answer}]}


def tree(folder):
    """Name and content of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A large task in three files, one of them compressed, and a small one."""
    root = tmp_path_factory.mktemp("sources")
    (root / "large").mkdir()
    (root / "small").mkdir()
    lines = [orjson.dumps(record(number)) + b"\n" for number in range(1200)]
    (root / "large" / "a.jsonl").write_bytes(b"".join(lines[:700]))
    (root / "large" / "b.jsonl").write_bytes(b"".join(lines[700:1000]).rstrip(b"\n"))
    with gzip.GzipFile(root / "large" / "c.jsonl.gz", "wb", mtime=0) as handle:
        handle.write(b"".join(lines[1000:]))
    (root / "small" / "a.jsonl").write_bytes(
        b"".join(orjson.dumps(record(5000 + number)) + b"\n" for number in range(9))
    )
    return root


@pytest.fixture
def small_chunks(monkeypatch):
    """Cuts even these sources into about ten chunks."""
    monkeypatch.setattr(chunks, "MIN_CHUNK_BYTES", 16_000)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 1)


@pytest.fixture
def build(sources, tokenizer_dir, small_chunks):
    """Runs `mft-data build` on the sources; returns the result."""

    def build(out, *options, exit_code=0, names=("large", "small")):
        arguments = [*(str(sources / name) for name in names), str(out), "--tokenizer", str(tokenizer_dir)]
        arguments += ["--seq-length", str(SEQ_LENGTH), *map(str, options)]
        result = CliRunner().invoke(main, ["build", *arguments])
        assert result.exit_code == exit_code, result.output
        return result

    return build


@pytest.fixture
def plain(build, tmp_path):
    """What one process builds without being disturbed."""
    build(tmp_path / "plain", "--workers", "1")
    return tree(tmp_path / "plain")


def leftovers(folder):
    """Hidden files and folders that a build should have removed."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"")), max_size=12), st.data())
def test_spans_hold_every_line_once_with_its_number(tmp_path_factory, lines, data):
    content = b"\n".join(lines)
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=5))})
    path = tmp_path_factory.mktemp("spans") / "a.jsonl"
    path.write_bytes(content)
    whole = list(read_lines(path, 0, len(content)))
    found = []
    for start, stop in itertools.pairwise(cuts):
        before = lines_before(path, start)
        found += [(before + number, line) for number, line in read_lines(path, start, stop)]
    assert found == whole
    expected = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    assert [(number, line.removesuffix(b"\n")) for number, line in whole] == expected


@given(
    sizes=st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=5), min_size=1, max_size=3),
    num_parts=st.integers(1, 5),
)
def test_chunks_and_parts_cover_every_byte_once(sizes, num_parts):
    sources = [
        Source(
            f"t{task}",
            Path("x"),
            tuple(SourceFile(Path(f"{n}.jsonl"), f"{n}", size) for n, size in enumerate(task_sizes)),
        )
        for task, task_sizes in enumerate(sizes)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MIN_CHUNK_BYTES", 40)
        patch.setattr(chunks, "CHUNK_ROWS", 0)
        planned = plan_chunks(sources, 128)
    assert [chunk.index for chunk in planned] == list(range(len(planned)))
    for task, source in enumerate(sources):
        spans = [span for chunk in planned if chunk.task == task for span in chunk.spans]
        for number, file in enumerate(source.files):
            own = [(span.start, span.stop) for span in spans if span.file == number]
            assert own[0][0] == 0
            assert own[-1][1] == file.size_bytes
            assert all(one[1] == other[0] for one, other in itertools.pairwise(own))
    parts = [chunk for part in range(1, num_parts + 1) for chunk in part_of(planned, part, num_parts)]
    assert parts == planned


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_every_byte_of_a_stream_is_what_the_streaming_library_writes(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("mft_data.dataset.mds.SHARD_BYTES", 3000)
    generator = np.random.default_rng(0)
    lengths = np.concatenate([generator.integers(1, 300, size=40), [70_000]])
    ids = generator.integers(0, 60_000, size=lengths.sum()).astype(dtype)
    encoded = EncodedBatch(ids, (ids % 2).astype(np.uint8), lengths)
    rows = [[0], [5, 2], *([position] for position in range(6, 41))]
    writer = ShardWriter(tmp_path / "ours", mds_columns(dtype))
    for sample in encode_rows(encoded, rows, 3):
        writer.write(sample)
    writer.finish()
    starts = np.cumsum(lengths) - lengths
    with MDSWriter(
        columns=mds_columns(dtype), out=str(tmp_path / "theirs"), hashes=["sha256"], size_limit=3000
    ) as theirs:
        for row in rows:
            spans = [slice(starts[p], starts[p] + lengths[p]) for p in row]
            columns = {
                name: np.concatenate([getattr(encoded, name)[span] for span in spans])
                for name in ("input_ids", "loss_mask")
            }
            theirs.write({**columns, "segment_lengths": lengths[row].astype(np.uint32), "task_id": 3})
    assert len(tree(tmp_path / "ours")) > 5
    assert tree(tmp_path / "ours") == tree(tmp_path / "theirs")


def test_a_build_has_many_chunks_here(build, tmp_path, sources):
    files = [SourceFile(path, path.name, path.stat().st_size) for path in sorted((sources / "large").iterdir())]
    assert len(plan_chunks([Source("large", sources, tuple(files))], SEQ_LENGTH)) > 5


def test_two_workers_build_the_same_tree_as_one(build, tmp_path, plain):
    build(tmp_path / "two", "--workers", "2")
    assert tree(tmp_path / "two") == plain
    assert leftovers(tmp_path) == []


def test_another_task_in_the_build_changes_no_row(build, tmp_path, plain):
    build(tmp_path / "alone", names=("large",))
    alone = {name: content for name, content in tree(tmp_path / "alone").items() if name.startswith(("train", "val"))}
    assert alone == {name: content for name, content in plain.items() if name in alone}


def forked(action):
    """Starts `action` in a copy of this process, and returns its id."""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            with Path(os.devnull).open("w") as null:
                os.dup2(null.fileno(), 1)
                os.dup2(null.fileno(), 2)
            action()
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize(("num_workers", "num_kills"), [(1, 16), (2, 4)])
def test_builds_killed_at_random_moments_resume_to_the_same_bytes(build, tmp_path, plain, num_workers, num_kills):
    generator = random.Random(num_workers)
    started = time.monotonic()
    os.waitpid(forked(lambda: build(tmp_path / "whole", "--workers", num_workers)), 0)
    whole_seconds = time.monotonic() - started
    assert tree(tmp_path / "whole") == plain
    out = tmp_path / "killed"
    kills = 0
    while kills < num_kills:
        child = forked(lambda: build(out, "--workers", num_workers, "--resume"))
        deadline = time.monotonic() + generator.uniform(0, whole_seconds)
        while time.monotonic() < deadline and not out.exists():
            time.sleep(0.001)
        if out.exists():
            os.waitpid(child, 0)
            assert tree(out) == plain
            shutil.rmtree(out)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
    build(out, "--workers", num_workers, "--resume")
    assert tree(out) == plain
    assert leftovers(tmp_path) == []


def test_a_resume_takes_finished_chunks_and_refuses_other_options(build, tmp_path, plain):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mft_data.execution.assemble.write_manifest", stop)
        build(tmp_path / "out", exit_code=1)
    (staging,) = [path for path in tmp_path.iterdir() if path.name == ".out.partial"]
    first = next(staging.glob("chunks/*"))
    before = first.stat().st_mtime_ns
    result = build(tmp_path / "out", "--resume", "--seed", "1", exit_code=1)
    assert "are not those of the build to resume" in result.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mft_data.execution.assemble.write_manifest", stop)
        build(tmp_path / "out", "--resume", exit_code=1)
    assert first.stat().st_mtime_ns == before
    build(tmp_path / "out", "--resume")
    assert tree(tmp_path / "out") == plain


def test_a_second_build_of_the_same_output_waits_for_nobody(build, tmp_path):
    import fcntl

    with (tmp_path / ".out.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        result = build(tmp_path / "out", exit_code=1)
    assert "another process is building" in result.stderr


def test_parts_built_apart_join_to_the_tree_of_one_build(build, tmp_path, plain):
    for part in (1, 2, 3):
        result = build(tmp_path / f"part{part}", "--part", f"{part}/3")
        assert result.stdout == f"{tmp_path / f'part{part}'}\n"
    parts = [str(tmp_path / f"part{part}") for part in (3, 1, 2)]
    result = CliRunner().invoke(main, ["join", *parts, str(tmp_path / "joined")])
    assert result.exit_code == 0, result.output
    assert tree(tmp_path / "joined") == plain


def test_parts_that_do_not_belong_together_are_refused(build, tmp_path):
    build(tmp_path / "one", "--part", "1/2")
    build(tmp_path / "two", "--part", "2/2")
    build(tmp_path / "other", "--part", "2/2", "--seed", "1")

    def error(*parts):
        paths = [str(tmp_path / part) for part in parts]
        result = CliRunner().invoke(main, ["join", *paths, str(tmp_path / "joined")])
        assert result.exit_code == 1
        assert not (tmp_path / "joined").exists()
        return result.stderr

    assert "part 2 of 2 is missing" in error("one")
    assert "are parts of different builds" in error("one", "other")
    assert "are both part 1" in error("one", "one")
    assert "is not a finished part" in error("one", "nothing")
    next((tmp_path / "two").glob("chunks/*/result.json")).unlink()
    assert "is missing from its part" in error("one", "two")


def test_ray_builds_the_same_tree(build, tmp_path, plain):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    build(tmp_path / "ray", "--engine", "ray", "--workers", "2")
    assert tree(tmp_path / "ray") == plain


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of a real S3 API on loopback."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


def test_a_dataset_on_s3_has_the_bytes_of_a_local_one_and_streams_back(bucket, build, tmp_path, plain, monkeypatch):
    from streaming import StreamingDataset

    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    result = build("s3://bucket/sets/one")
    assert result.stdout == "s3://bucket/sets/one\n"
    listed = bucket.list_objects_v2(Bucket="bucket")["Contents"]
    objects = {entry["Key"]: bucket.get_object(Bucket="bucket", Key=entry["Key"])["Body"].read() for entry in listed}
    assert objects == {f"sets/one/{name}": content for name, content in plain.items()}
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "holds a dataset already" in build("s3://bucket/sets/one", exit_code=1).stderr
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    remote = "s3://bucket/sets/one/train/large"
    rows = StreamingDataset(remote=remote, local=str(tmp_path / "cache"), batch_size=1)
    assert len(rows) == len(LocalDataset(str(tmp_path / "plain" / "train" / "large")))
    assert sum(len(row["input_ids"]) for row in rows) > 0


def test_a_store_that_cannot_be_written_is_one_line(bucket, build):
    result = build("s3://nowhere/set", exit_code=1)
    assert result.stderr.count("\n") == 1
    assert '"s3://nowhere/set" cannot be written' in result.stderr


def test_the_first_bad_record_of_the_input_is_named_whoever_finds_it(sources, tokenizer_dir, tmp_path, small_chunks):
    lines = (sources / "large" / "a.jsonl").read_bytes().splitlines(keepends=True)
    lines[650] = b"{}\n"
    lines[300] = b"[]\n"
    (tmp_path / "bad.jsonl").write_bytes(b"".join(lines))
    command = ["build", f"bad={tmp_path / 'bad.jsonl'}", str(tmp_path / "out"), "--tokenizer", str(tokenizer_dir)]
    for workers in ("1", "2"):
        result = CliRunner().invoke(main, [*command, "--seq-length", "128", "--workers", workers])
        assert result.exit_code == 1
        assert "bad.jsonl line 301" in result.stderr
        assert leftovers(tmp_path) == []
    result = CliRunner().invoke(main, [*command, "--seq-length", "128", "--workers", "2", "--max-rejects", "2"])
    assert result.exit_code == 0, result.output
    rejects = [orjson.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_bytes().splitlines()]
    assert [reject["line"] for reject in rejects] == [301, 651]


def test_validation_sources_are_for_validation_alone(sources, tokenizer_dir, tmp_path, small_chunks):
    (tmp_path / "held.jsonl").write_bytes(b"".join(orjson.dumps(record(9000 + number)) + b"\n" for number in range(5)))
    held = ["--validation-source", f"small={tmp_path / 'held.jsonl'}"]
    command = ["build", str(sources / "large"), str(sources / "small"), str(tmp_path / "out"), *held]
    result = CliRunner().invoke(main, [*command, "--tokenizer", str(tokenizer_dir), "--seq-length", "128"])
    assert result.exit_code == 0, result.output
    manifest = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())
    small = manifest["tasks"][1]
    assert small["splits"]["train"]["conversations"] == 9
    assert small["splits"]["validation"]["conversations"] == 5
    assert [source["split"] for source in small["sources"]] == ["train", "validation"]
    command[-1] = f"other={tmp_path / 'held.jsonl'}"
    result = CliRunner().invoke(main, [*command, "--tokenizer", str(tokenizer_dir), "--overwrite"])
    assert 'validation source of task "other", which has no source' in result.stderr


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (2, 0.001), (2, 0.999), (7, 0.001), (40, 0.5)])
def test_every_task_of_two_or_more_has_both_sides(tokenizer_dir, tmp_path, count, fraction, small_chunks):
    lines = [orjson.dumps(record(number)) + b"\n" for number in range(count)]
    (tmp_path / "t.jsonl").write_bytes(b"".join(lines + lines))
    command = ["build", f"t={tmp_path / 't.jsonl'}", str(tmp_path / "out"), "--validation", str(fraction)]
    result = CliRunner().invoke(main, [*command, "--tokenizer", str(tokenizer_dir), "--seq-length", "128"])
    assert result.exit_code == 0, result.output
    splits = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())["tasks"][0]["splits"]
    sides = {}
    for split, counts in splits.items():
        stream = tmp_path / "out" / split / "t"
        rows = LocalDataset(str(stream)) if counts["rows"] else []
        segments = [
            bytes(segment)
            for row in (rows[position] for position in range(len(rows)))
            for segment in np.split(row["input_ids"], np.cumsum(row["segment_lengths"])[:-1])
        ]
        assert len(segments) == counts["conversations"]
        assert len(rows) == counts["rows"]
        for segment in segments:
            assert sides.setdefault(segment, split) == split, "the same conversation is on both sides"
    assert len(sides) == count
    assert set(sides.values()) == ({"train", "validation"} if count > 1 else {"train"})


def test_duplicates_are_dropped_and_counted(tokenizer_dir, tmp_path, small_chunks):
    lines = [orjson.dumps(record(number)) + b"\n" for number in range(300)]
    (tmp_path / "t.jsonl").write_bytes(b"".join(lines + lines[:50]))
    command = ["build", f"t={tmp_path / 't.jsonl'}", "--tokenizer", str(tokenizer_dir), "--seq-length", "128"]
    for workers in ("1", "2"):
        out = str(tmp_path / f"out{workers}")
        result = CliRunner().invoke(main, [*command, "--dedup", "exact", "--workers", workers, out])
        assert result.exit_code == 0, result.output
        task = orjson.loads(Path(out, "manifest.json").read_bytes())["tasks"][0]
        assert task["conversations"]["duplicates"] == 50
        assert sum(counts["conversations"] for counts in task["splits"].values()) == 300
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")
    result = CliRunner().invoke(main, [*command, "--dedup", "exact", "--part", "1/2", str(tmp_path / "part")])
    assert "--dedup needs the whole input" in result.stderr


@pytest.mark.parametrize(("action", "kept"), [("drop", 20), ("report", 21)])
def test_contaminated_conversations_are_counted_and_dropped(tokenizer_dir, tmp_path, action, kept):
    prompt = "def median(values): sort the values and return the one in the middle of the list please"
    problem = {"task_id": 1, "prompt": prompt, "code": "x", "test_list": []}
    (tmp_path / "problems.jsonl").write_bytes(orjson.dumps(problem))
    leak = {"chat_rounds": [{"role": "human", "content": prompt.upper()}, {"role": "bot", "content": "return 1"}]}
    lines = [orjson.dumps(entry) + b"\n" for entry in [*(record(number) for number in range(20)), leak]]
    (tmp_path / "t.jsonl").write_bytes(b"".join(lines))
    command = ["build", f"t={tmp_path / 't.jsonl'}", str(tmp_path / "out"), "--tokenizer", str(tokenizer_dir)]
    options = ["--decontaminate", str(tmp_path / "problems.jsonl"), "--contaminated", action]
    result = CliRunner().invoke(main, [*command, *options])
    assert result.exit_code == 0, result.output
    manifest = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["decontaminated"][0]["file"] == "problems.jsonl"
    task = manifest["tasks"][0]
    assert task["conversations"]["contaminated"] == 1
    assert sum(counts["conversations"] for counts in task["splits"].values()) == kept


REFUSES_SYSTEM = """{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ raise_exception('no system here') }}{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""


def test_a_conversation_that_the_template_refuses_is_a_refused_record(tokenizer_dir, tmp_path, small_chunks):
    (tmp_path / "chat.jinja").write_text(REFUSES_SYSTEM)
    with_system = {"chat_rounds": [{"role": "system", "content": "Be brief."}, *record(1)["chat_rounds"]]}
    entries = [*(record(number) for number in range(400)), with_system, *(record(number) for number in range(5))]
    (tmp_path / "t.jsonl").write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))
    command = ["build", f"t={tmp_path / 't.jsonl'}", "--tokenizer", str(tokenizer_dir), "--seq-length", "128"]
    command += ["--template", str(tmp_path / "chat.jinja")]
    result = CliRunner().invoke(main, [*command, str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "no system here" in result.stderr
    assert "t.jsonl line 401" in result.stderr
    for workers in ("1", "2"):
        options = ["--max-rejects", "1", "--dedup", "exact", "--workers", workers]
        result = CliRunner().invoke(main, [*command, *options, str(tmp_path / f"out{workers}")])
        assert result.exit_code == 0, result.output
    assert tree(tmp_path / "out1") == tree(tmp_path / "out2")
    task = orjson.loads((tmp_path / "out1" / "manifest.json").read_bytes())["tasks"][0]
    assert task["conversations"]["rejected"] == 1
    assert task["conversations"]["duplicates"] == 5
    assert sum(counts["conversations"] for counts in task["splits"].values()) == 400
