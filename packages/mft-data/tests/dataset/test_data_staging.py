"""Nothing is lost: a build deletes what it made itself and no more, and keeps finished work on every error."""

import os
import resource
import signal

import orjson
import pytest
from click.testing import CliRunner

from mft_data.cli import main
from mft_data.reading import chunks


def record(number):
    """A conversation that tells its number."""
    return {"chat_rounds": [{"role": "human", "content": f"add {number}"}, {"role": "bot", "content": f"{number}"}]}


@pytest.fixture
def build(tmp_path, tokenizer_dir, write_task, monkeypatch):
    """Builds `out` beside the task `t` in `tmp_path`, in chunks of few records; returns the result."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chunks, "MIN_CHUNK_BYTES", 4_000)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 1)
    write_task("t", [record(number) for number in range(400)])

    def build(*options, exit_code=0, out="out"):
        arguments = ["t", out, "--tokenizer", str(tokenizer_dir), "--seq-length", "128", "--workers", "1", *options]
        result = CliRunner().invoke(main, ["build", *arguments])
        assert result.exit_code == exit_code, result.output
        assert result.stderr.count("\n") == 1 or exit_code == 0
        return result

    return build


def tree(folder):
    """Name and content of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def strangers(folder):
    """Folders and files beside the output, under names that a build might be tempted to use; their tree."""
    for name in ("dataset.old", ".out.partial.old", "out.old", ".out.old", "out.partial", ".out.lock.d"):
        (folder / name).mkdir()
        (folder / name / "thesis.txt").write_text("years of work")
    for name in (".out.lock", "out.lock"):
        (folder / name).write_text("a lock of somebody else")
    return {name: content for name, content in tree(folder).items() if not name.startswith(("t/", "out/"))}


@pytest.mark.parametrize("out", ["out", "new/out"])
def test_a_build_touches_nothing_beside_it(build, tmp_path, out):
    (tmp_path / "new").mkdir()
    folder = (tmp_path / out).parent
    build(out=out)
    before = strangers(folder)
    build("--overwrite", out=out)
    after = {name: content for name, content in tree(folder).items() if not name.startswith(("t/", "out/"))}
    assert after == before


def test_a_folder_in_the_place_of_the_work_that_no_build_made_is_in_the_way(build, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "thesis.txt").write_text("years of work")
    for options in ((), ("--overwrite",), ("--resume",)):
        assert "is in the way, and no build made it, move it away" in build(*options, exit_code=1).stderr
    assert (tmp_path / ".out.partial" / "thesis.txt").exists()
    (tmp_path / ".out.partial" / "thesis.txt").unlink()
    build()


@pytest.mark.parametrize("name", ["thesis.txt", "manifest.json"])
def test_overwrite_replaces_datasets_and_nothing_else(build, tmp_path, name):
    if name == "manifest.json":  # of something else, say a browser's extension
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_text('{"manifest_version": 3}')
        assert 'output "out" is not a dataset' in build("--overwrite", exit_code=1).stderr
    else:
        build()
        (tmp_path / "out" / name).write_text("years of work")
        assert "holds 'thesis.txt', which no build put there" in build("--overwrite", exit_code=1).stderr
    assert (tmp_path / "out" / name).exists()


@pytest.mark.parametrize("options", [(), ("--part", "1/1")])
def test_overwrite_replaces_no_file_of_others_at_any_depth(build, tmp_path, options):
    build(*options)
    names = ("train/t/thesis.txt", "train/t/shard.mine.mds", "validation/thesis.mds", "tokenizer/thesis/a.txt", "link")
    for name in names:
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(tmp_path / "t") if name == "link" else path.write_text("years of work")
        assert f"holds '{name}', which no build put there" in build("--overwrite", *options, exit_code=1).stderr
        path.unlink()
    build("--overwrite", *options)


def test_what_appears_at_the_output_during_the_build_is_not_replaced(build, tmp_path, monkeypatch):
    from mft_data.execution import assemble

    write_manifest = assemble.write_manifest

    def write_and_squat(*arguments):
        write_manifest(*arguments)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("years of work")

    monkeypatch.setattr(assemble, "write_manifest", write_and_squat)
    assert 'output "out" is not empty' in build(exit_code=1).stderr
    assert (tmp_path / "out" / "thesis.txt").exists()
    assert (tmp_path / ".out.partial").exists()


def finished(tmp_path):
    """The finished chunks of the unfinished build, by name with their time."""
    return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob(".out.partial/chunks/[0-9]*")}


def check_resumes(build, tmp_path, stderr, *options):
    """Checks that the error names the kept work, that it stays in the way, and that a resume takes it as it is."""
    kept = finished(tmp_path)
    assert len(kept) > 3
    remedy = "give --resume to go on with it, or --overwrite to begin anew"
    assert f"(the finished work is kept in {tmp_path / '.out.partial'}: {remedy})" in stderr
    assert remedy in build(exit_code=1).stderr
    assert finished(tmp_path) == kept
    seen = {}

    def note(staged, *rest, replace_dir):
        seen.update(finished(tmp_path))
        replace_dir(staged, *rest)

    from mft_data.dataset import staging

    with pytest.MonkeyPatch.context() as patch:
        replace_dir = staging.replace_dir
        patch.setattr(staging, "replace_dir", lambda *rest: note(*rest, replace_dir=replace_dir))
        build("--resume", *options)
    assert kept.items() <= seen.items()
    resumed = tree(tmp_path / "out")
    build("--overwrite", *options)
    assert tree(tmp_path / "out") == resumed
    assert not (tmp_path / ".out.partial").exists()


def test_a_bad_record_late_in_the_input_costs_no_finished_work(build, tmp_path, write_task):
    write_task("t", [*(record(number) for number in range(400)), {"chat_rounds": 3}])
    error = build(exit_code=1).stderr
    assert "t/part.jsonl line 401" in error
    check_resumes(build, tmp_path, error, "--max-rejects", "1")


def test_a_full_disk_costs_no_finished_work(build, tmp_path, write_task):
    # The last records make a chunk larger than the limit.
    write_task("t", [*(record(number) for number in range(400)), *({"text": "9 " * 9000} for _ in range(2))])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, old[1]))
    try:
        error = build("--format", "chat_rounds", "--max-rejects", "2", "--overlong", "truncate", exit_code=1).stderr
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "File too large" in error
    check_resumes(build, tmp_path, error, "--format", "chat_rounds", "--max-rejects", "2", "--overlong", "truncate")


def test_a_killed_worker_costs_no_finished_work(build, tmp_path, write_task):
    write_task("t", [record(number) for number in range(2000)])
    from mft_data.commands import build as command

    run_chunks = command.run_chunks
    sent = []

    class Unlucky:
        """Kills one of the engine's workers when some chunks are done."""

        def __init__(self, engine):
            self.engine = engine

        def run(self, state, jobs):
            for result in self.engine.run(state, jobs):
                sent.append(result)
                if len(sent) == 12:
                    os.kill(next(iter(self.engine.pool._processes)), signal.SIGKILL)
                yield result

    def run_and_kill(plan, encoder, some, chunks_dir, engine, *found, is_part):
        return run_chunks(plan, encoder, some, chunks_dir, Unlucky(engine), *found, is_part=is_part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "run_chunks", run_and_kill)
        error = build("--workers", "2", exit_code=1).stderr
    assert "a worker process ended by itself or was killed" in error
    check_resumes(build, tmp_path, error)


def test_an_error_before_any_chunk_is_finished_leaves_nothing(build, tmp_path, write_task):
    write_task("t", [{"chat_rounds": 3}])
    build(exit_code=1)
    assert not (tmp_path / ".out.partial").exists()


def test_what_killed_workers_leave_in_a_part_is_gone_when_it_is_finished(build, tmp_path):
    build("--part", "1/1", out="part")
    # As a killed worker of another host would leave it.
    (tmp_path / "part" / "chunks" / ".000003-1234").mkdir()
    (tmp_path / "part" / "chunks" / ".000003-1234" / "result.json").write_text("{}")
    result = CliRunner().invoke(main, ["join", "part", "joined"])
    assert result.exit_code == 0, result.output
    build()
    assert tree(tmp_path / "joined") == tree(tmp_path / "out")


def test_nothing_is_left_in_the_temporary_folder(build, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    child = os.fork()
    if child == 0:
        os.close(2)
        from contextlib import nullcontext

        # The progress of a build is told after each chunk.
        suicide = nullcontext(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        monkeypatch.setattr("mft_data.commands.build.show_progress", lambda _: suicide)
        build("--workers", "2")
    os.waitpid(child, 0)
    assert (tmp_path / ".out.partial" / "plan.json").exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    build("--resume")
    assert orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())["tasks"][0]["conversations"]["read"] == 400
