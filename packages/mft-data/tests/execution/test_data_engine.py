"""The engine of a build: workers, kills and resumes, parts, other machines; the same bytes every way."""

import contextlib
import gzip
import os
import random
import shutil
import signal
import time
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from mft_data.cli import main
from mft_data.execution import chunk_store
from mft_data.execution.engines import ALLOCATOR, Processes
from mft_data.reading.chunks import plan_chunks
from mft_data.reading.sources import Source, SourceFile

SEQ_LENGTH = 128


def test_a_build_has_many_chunks_here(build, tmp_path, sources):
    files = [SourceFile(path, path.name, path.stat().st_size) for path in sorted((sources / "large").iterdir())]
    assert len(plan_chunks([Source("large", (sources,), tuple(files))], SEQ_LENGTH)) > 5


def test_two_workers_build_the_same_tree_as_one(build, tmp_path, plain, helpers):
    build(tmp_path / "two", "--workers", "2")
    assert helpers.tree(tmp_path / "two") == plain
    assert helpers.leftovers(tmp_path) == []


@pytest.mark.parametrize("given", [None, "glibc.malloc.tcache_count=5"])
def test_workers_start_with_an_allocator_for_tokens_and_the_user_s_own_goes_before(tmp_path, monkeypatch, given):
    name, value = ALLOCATOR
    monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv(name, given)
    engine = Processes(1, tmp_path)
    try:
        (found,) = engine.run(name, [(os.getenv,)])
    finally:
        engine.close()
    assert found == (given or value)
    assert os.environ.get(name) == given


def test_another_task_in_the_build_changes_no_row(build, tmp_path, plain, helpers):
    build(tmp_path / "alone", names=("large",))
    alone = {
        name: content for name, content in helpers.tree(tmp_path / "alone").items() if name.startswith(("train", "val"))
    }
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
def test_builds_killed_at_random_moments_resume_to_the_same_bytes(
    build, tmp_path, plain, num_workers, num_kills, helpers
):
    generator = random.Random(num_workers)
    started = time.monotonic()
    os.waitpid(forked(lambda: build(tmp_path / "whole", "--workers", num_workers)), 0)
    whole_seconds = time.monotonic() - started
    assert helpers.tree(tmp_path / "whole") == plain
    out = tmp_path / "killed"
    kills = 0
    while kills < num_kills:
        child = forked(lambda: build(out, "--workers", num_workers, "--resume"))
        deadline = time.monotonic() + generator.uniform(0, whole_seconds)
        while time.monotonic() < deadline and not out.exists():
            time.sleep(0.001)
        if out.exists():
            os.waitpid(child, 0)
            assert helpers.tree(out) == plain
            shutil.rmtree(out)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
    build(out, "--workers", num_workers, "--resume")
    assert helpers.tree(out) == plain
    assert helpers.leftovers(tmp_path) == []


def test_a_kill_while_the_tokenizer_is_saved_leaves_no_half_of_it(build, tmp_path, plain, helpers):
    def half(_tokenizer, chat_template, tokenizer_dir):
        tokenizer_dir.mkdir(parents=True)
        (tokenizer_dir / "chat_template.jinja").write_text(chat_template[:5])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mft_data.commands.build.save_tokenizer", half)
        build(tmp_path / "out", exit_code=1)
    build(tmp_path / "out", "--resume")
    assert helpers.tree(tmp_path / "out") == plain


def test_a_resume_takes_finished_chunks_and_refuses_other_options(build, tmp_path, plain, helpers):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mft_data.execution.assemble.write_manifest", stop)
        build(tmp_path / "out", exit_code=1)
    (staging,) = [path for path in tmp_path.iterdir() if path.name == ".out.partial"]
    first = next(staging.glob("chunks/*.0000"))
    before = first.stat().st_mtime_ns
    result = build(tmp_path / "out", "--resume", "--seed", "1", exit_code=1)
    assert "are not those of the build to resume (seed is another)" in result.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mft_data.execution.assemble.write_manifest", stop)
        build(tmp_path / "out", "--resume", exit_code=1)
    assert first.stat().st_mtime_ns == before
    build(tmp_path / "out", "--resume")
    assert helpers.tree(tmp_path / "out") == plain


def test_a_second_build_of_the_same_output_waits_for_nobody(build, tmp_path):
    import fcntl

    (tmp_path / ".out.partial").mkdir()
    with (tmp_path / ".out.partial" / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        result = build(tmp_path / "out", exit_code=1)
    assert "another process is building" in result.stderr


def test_parts_built_apart_join_to_the_tree_of_one_build(build, tmp_path, plain, helpers):
    for part in (1, 2, 3):
        result = build(tmp_path / f"part{part}", "--part", f"{part}/3")
        assert result.stdout == f"{tmp_path / f'part{part}'}\n"
    parts = [str(tmp_path / f"part{part}") for part in (3, 1, 2)]
    result = CliRunner().invoke(main, ["join", *parts, str(tmp_path / "joined")])
    assert result.exit_code == 0, result.output
    assert helpers.tree(tmp_path / "joined") == plain


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


def test_ray_builds_the_same_tree(build, tmp_path, plain, helpers):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    build(tmp_path / "ray", "--engine", "ray", "--workers", "2")
    assert helpers.tree(tmp_path / "ray") == plain


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_is_built_in_pieces_and_resumed(tokenizer_dir, small_chunks, tmp_path, helpers, suffix):
    import zstandard

    lines = [orjson.dumps(helpers.record(number)) + b"\n" for number in range(1500)]
    lines[1200] = b"{}\n"
    content = b"".join(lines)
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(gzip.compress(content, mtime=0) if suffix == ".gz" else zstandard.compress(content))
    told = []

    def run(name, *options, exit_code=0):
        arguments = ["build", f"t={path}", str(tmp_path / name), "--tokenizer", str(tokenizer_dir), *options]
        result = CliRunner().invoke(main, [*arguments, "--seq-length", "128"])
        assert result.exit_code == exit_code, result.output
        return result

    with pytest.MonkeyPatch.context() as patch:
        advance = contextlib.nullcontext(lambda num_bytes, _: told.append(num_bytes))
        patch.setattr("mft_data.commands.build.show_progress", lambda _: advance)
        run("plain", "--workers", "1", "--max-rejects", "1")
    assert len(told) > 5
    assert sum(told) == path.stat().st_size
    assert b'"line":1201,' in (tmp_path / "plain" / "rejects.jsonl").read_bytes()
    assert f"{path} line 1201" in run("out", "--workers", "2", exit_code=1).stderr
    kept = {folder.name for folder in tmp_path.glob(".out.partial/chunks/*.0*")}
    assert len(kept) > 3
    encoded = []
    with pytest.MonkeyPatch.context() as patch:
        encode_chunk = chunk_store.encode_chunk
        patch.setattr(chunk_store, "encode_chunk", lambda *rest: encoded.append(rest[2]) or encode_chunk(*rest))
        run("out", "--workers", "1", "--max-rejects", "1", "--resume")
    assert len(encoded) == len(told) - len(kept)
    assert helpers.tree(tmp_path / "out") == helpers.tree(tmp_path / "plain")
    run("part", "--part", "1/1", "--max-rejects", "1")
    assert CliRunner().invoke(main, ["join", str(tmp_path / "part"), str(tmp_path / "joined")]).exit_code == 0
    assert helpers.tree(tmp_path / "joined") == helpers.tree(tmp_path / "plain")
