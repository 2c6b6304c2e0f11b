"""Files that change under a build: they are noticed, or what is built is that of files as they were at one time."""

import gzip
import hashlib
import os
import random
import shutil
import signal
import time

import orjson
import pytest
from click.testing import CliRunner

from mft_data.cli import main

CHANGED = ("has changed since", "changed while the dataset was built", "are not those of the build to resume")


@pytest.fixture
def folder(sources, tmp_path):
    """A copy of the large task, to edit."""
    return shutil.copytree(sources / "large", tmp_path / "large")


@pytest.fixture
def run(folder, tmp_path, tokenizer_dir, small_chunks, monkeypatch):
    """Builds the copy to a folder of this name; returns the result."""

    monkeypatch.setattr("mft_data.reading.chunks.EDGE_BYTES", 500)

    def run(name, *options):
        arguments = ["build", str(folder), str(tmp_path / name), "--tokenizer", str(tokenizer_dir)]
        return CliRunner().invoke(main, [*arguments, "--seq-length", "128", *options])

    return run


def edit(folder, name="a.jsonl", number=350):
    """Changes one record of a file, and neither its size nor its edges."""
    path = folder / name
    opened = gzip.open if name.endswith(".gz") else open
    with opened(path, "rb") as handle:
        lines = handle.read().splitlines(keepends=True)
    lines[number] = lines[number].replace(b"add ", b"sub ", 1)
    if name.endswith(".gz"):
        with gzip.GzipFile(path, "wb", mtime=0) as handle:
            handle.write(b"".join(lines))
    else:
        path.write_bytes(b"".join(lines))


def stopped(run, name, *options):
    """Builds until everything is encoded, and no further."""

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mft_data.execution.assemble.write_manifest", stop)
        assert run(name, *options).exit_code == 1


def check_refused(result, *names):
    """Checks that a command ended with one line that names the file."""
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert any(words in result.stderr for words in CHANGED), result.stderr
    assert all(name in result.stderr for name in names)


def test_an_edit_of_the_same_size_between_a_kill_and_a_resume_is_refused_by_name(run, folder, helpers):
    stopped(run, "out")
    edit(folder)
    check_refused(run("out", "--resume"), "a.jsonl")
    edited = (folder / "a.jsonl").read_bytes()
    (folder / "a.jsonl").write_bytes(edited.replace(b"sub ", b"add "))
    assert run("out", "--resume").exit_code == 0
    run("plain")
    assert helpers.tree(folder.parent / "out") == helpers.tree(folder.parent / "plain")


def test_an_edit_between_two_parts_is_refused_by_name(run, folder, tmp_path):
    assert run("one", "--part", "1/2").exit_code == 0
    path = folder / "a.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert run("two", "--part", "2/2").exit_code == 0
    parts = [str(tmp_path / "one"), str(tmp_path / "two")]
    shutil.rmtree(tmp_path / "two")
    # Of the second part's chunks, and of the same size.
    lines[690] = lines[690].replace(b"add ", b"sub ", 1)
    path.write_bytes(b"".join(lines))
    edit(folder, "b.jsonl", 150)
    assert run("two", "--part", "2/2").exit_code == 0
    check_refused(CliRunner().invoke(main, ["join", *parts, str(tmp_path / "joined")]), "jsonl")
    assert not (tmp_path / "joined").exists()


@pytest.mark.parametrize("name", ["a.jsonl", "c.jsonl.gz"])
@pytest.mark.parametrize("dedup", ["none", "exact"])
def test_an_edit_during_the_build_is_refused_or_not_in_it(run, folder, helpers, name, dedup):
    from mft_data.execution import chunk_store

    run("plain", "--dedup", dedup)
    encode_chunk, seen = chunk_store.encode_chunk, []

    def encode_and_edit(work, encoder, chunk, *rest):
        seen.append(chunk)
        if len(seen) == 2:
            edit(folder, name, 150 if name.endswith("gz") else 640)
        return encode_chunk(work, encoder, chunk, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_store, "encode_chunk", encode_and_edit)
        result = run("out", "--dedup", dedup, "--workers", "1")
    assert len(seen) >= 2
    if result.exit_code:
        check_refused(result, name)
    else:  # the compressed file was not read before: it is in the dataset as it is now
        digests = sources_of(folder.parent / "out")
        assert digests[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        run("fresh", "--dedup", dedup)
        assert helpers.tree(folder.parent / "out") == helpers.tree(folder.parent / "fresh")
    assert result.exit_code or name == "c.jsonl.gz"


def sources_of(dataset):
    """The digest of each source file that the manifest tells."""
    manifest = orjson.loads((dataset / "manifest.json").read_bytes())
    return {source["file"]: source["sha256"] for source in manifest["tasks"][0]["sources"]}


def test_a_file_that_grows_during_the_build_is_refused_by_name(run, folder):
    from mft_data.commands import build as command

    make_plan = command.make_plan

    def grow(*arguments):
        with (folder / "b.jsonl").open("ab") as handle:
            handle.write(b'\n{"chat_rounds": []}\n')
        return make_plan(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "make_plan", grow)
        check_refused(run("out"), "b.jsonl")


def test_an_edit_that_the_plan_shows_is_refused_by_name(run, folder):
    stopped(run, "out")
    edit(folder, "b.jsonl", 0)
    check_refused(run("out", "--resume"), "the file large/b.jsonl is another")


def wait_for_chunk(place, out, child):
    """Returns when a build has finished a chunk or itself, or has ended."""
    while not out.exists() and not any(place.glob(".out.partial/chunks/*.0000")):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "num_kills"), [(1, 20), (2, 4)])
def test_kills_with_edits_in_between_resume_to_a_fresh_build_or_refuse(run, folder, helpers, num_workers, num_kills):
    """Half of the kills are followed by an edit."""
    generator = random.Random(num_workers)
    out = folder.parent / "out"
    workers = ("--workers", str(num_workers))
    begun = time.monotonic()
    assert run("plain", *workers).exit_code == 0
    whole_seconds = time.monotonic() - begun
    originals = {path.name: path.read_bytes() for path in folder.iterdir()}
    refusals = 0
    for _ in range(num_kills):
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                run("out", "--resume", *workers)
            finally:
                os._exit(0)
        moment = generator.uniform(0.1, 1) * whole_seconds
        if generator.random() < 0.5:  # once a chunk is done, from which on an edit is one between two readings
            moment /= 4
            wait_for_chunk(folder.parent, out, child)
        time.sleep(moment)
        if not out.exists():
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if generator.random() < 0.5:
            name = generator.choice(["a.jsonl", "b.jsonl", "c.jsonl.gz"])
            edit(folder, name, generator.randrange(20, 180))
        result = run("out", "--resume", *workers)
        if result.exit_code and "is not empty" not in result.stderr:
            check_refused(result)
            refusals += 1
            for name, content in originals.items():
                (folder / name).write_bytes(content)
            assert run("out", "--resume", *workers).exit_code == 0
        # Built before the edit, or from files with it.
        trees = [helpers.tree(folder.parent / "plain")]
        run("fresh", *workers)
        trees.append(helpers.tree(folder.parent / "fresh"))
        assert helpers.tree(out) in trees
        shutil.rmtree(out)
        shutil.rmtree(folder.parent / "fresh")
        for name, content in originals.items():
            (folder / name).write_bytes(content)
    assert refusals or num_kills < 20
