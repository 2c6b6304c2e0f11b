"""Nothing is lost: lines are appended as they are done, and a resume makes the file of an uninterrupted run."""

import json
import multiprocessing
import os
import random
import re
import resource
import stat
import threading
import time
from pathlib import Path

import pytest

from mft_infer.cli import main

PROMPTS = [{"problem_id": f"p/{index}", "prompt": "fox jumps " * (1 + index % 5)} for index in range(12)]
OPTIONS = ("--max-new-tokens", 30, "--batch-size", 4, "--temperature", 1.3, "--num-samples", 4)


def keys(path: Path) -> list[tuple[str, int]]:
    return [(record["problem_id"], record["sample_index"]) for record in map(json.loads, path.open(encoding="utf-8"))]


@pytest.fixture
def generate(run_infer, model_dir, write_prompts, tmp_path):
    """generate(out, *options) runs the command and returns its result."""
    prompts = write_prompts(PROMPTS)

    def run(out: str, *options, prompts=prompts, model=model_dir):
        return run_infer("generate", model, prompts, tmp_path / out, *OPTIONS, *options)

    return run


@pytest.fixture(scope="module")
def uninterrupted(run_infer, model_dir, tmp_path_factory) -> bytes:
    """What an uninterrupted run writes, made once for all tests."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    (directory / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS), "utf-8")
    result = run_infer("generate", model_dir, directory / "prompts.jsonl", directory / "whole.jsonl", *OPTIONS)
    assert result.exit_code == 0, result.output
    return (directory / "whole.jsonl").read_bytes()


@pytest.fixture
def whole(uninterrupted, generate, tmp_path) -> bytes:
    """The file of an uninterrupted run, which lies in `tmp_path` beside the prompts."""
    (tmp_path / "whole.jsonl").write_bytes(uninterrupted)
    return uninterrupted


def run_command(arguments: list[str]) -> None:
    main(arguments, standalone_mode=False)


def test_twenty_kills_and_resumes_give_the_file_of_an_uninterrupted_run(whole, model_dir, tmp_path):
    out = tmp_path / "killed.jsonl"
    command = ["generate", str(model_dir), str(tmp_path / "prompts.jsonl"), str(out), *map(str, OPTIONS), "--resume"]
    fork = multiprocessing.get_context("fork")
    draw = random.Random(0)
    sizes = set()
    for _ in range(20):
        before = out.stat().st_size if out.exists() else 0
        process = fork.Process(target=run_command, args=(command,))
        process.start()
        # Half of the kills come at any moment, half of them when there is something new.
        waits_for_growth = draw.random() < 0.5
        deadline = time.monotonic() + (5 if waits_for_growth else draw.uniform(0, 0.2))
        while process.is_alive() and time.monotonic() < deadline:
            if waits_for_growth and out.exists() and out.stat().st_size > before:
                break
            process.join(0.001)
        process.kill()
        process.join()
        sizes.add(out.stat().st_size if out.exists() else 0)
    assert len(sizes) > 3
    process = fork.Process(target=run_command, args=(command,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert out.read_bytes() == whole
    # What a kill within the last rename may leave has a name that no other run takes for its own.
    others = {path.name for path in tmp_path.iterdir()} - {"whole.jsonl", "killed.jsonl", "prompts.jsonl"}
    assert all(re.fullmatch(r"\.killed\.jsonl\.[0-9a-f]{16}\.partial", name) for name in others)


def run_in_little_room(arguments: list[str]) -> None:
    """No file may have more than 6,000 bytes, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
    main(arguments, standalone_mode=True)


def test_a_full_disk_is_named_and_loses_no_line(whole, model_dir, generate, tmp_path, capfd):
    out = tmp_path / "full.jsonl"
    command = ["generate", str(model_dir), str(tmp_path / "prompts.jsonl"), str(out), *map(str, OPTIONS)]
    process = multiprocessing.get_context("fork").Process(target=run_in_little_room, args=(command,))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert capfd.readouterr().err.splitlines()[-1] == f"Error: File too large, in {out}"
    lines = out.read_bytes().splitlines(keepends=True)
    assert set(lines[:-1]) < set(whole.splitlines(keepends=True))
    assert len(lines) > 5
    assert generate("full.jsonl", "--resume").exit_code == 0
    assert out.read_bytes() == whole
    result = generate("/dev/full")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: No space left on device, in /dev/full"


@pytest.mark.parametrize("num_bytes", [0, 1, 700, 5000])
def test_a_file_cut_anywhere_is_completed(num_bytes, whole, generate, tmp_path):
    (tmp_path / "cut.jsonl").write_bytes(whole[:num_bytes])
    result = generate("cut.jsonl", "--resume")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "cut.jsonl").read_bytes() == whole


def test_a_finished_file_is_left_as_it_is(whole, generate, tmp_path):
    result = generate("whole.jsonl", "--resume")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("48 of 48 completions are there already\n0 completions")
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


def test_more_samples_go_on_where_fewer_ended(whole, generate, run_infer, model_dir, tmp_path):
    assert generate("few.jsonl", "--num-samples", 2).exit_code == 0
    assert generate("few.jsonl", "--resume").exit_code == 0
    assert (tmp_path / "few.jsonl").read_bytes() == whole


def test_errors_are_tried_again(whole, generate, tmp_path):
    lines = whole.splitlines(keepends=True)
    record = json.loads(lines[5])
    record |= {"completion": "", "finish_reason": "error", "error": "the server was away"}
    lines[5] = json.dumps(record).encode() + b"\n"
    (tmp_path / "error.jsonl").write_bytes(b"".join(lines))
    assert generate("error.jsonl", "--resume").exit_code == 0
    assert (tmp_path / "error.jsonl").read_bytes() == whole


def test_lines_are_in_the_order_of_the_prompts_or_of_their_making(whole, generate, tmp_path):
    assert keys(tmp_path / "whole.jsonl") == [(prompt["problem_id"], index) for prompt in PROMPTS for index in range(4)]
    assert generate("unordered.jsonl", "--unordered").exit_code == 0
    assert keys(tmp_path / "unordered.jsonl") != keys(tmp_path / "whole.jsonl")
    assert sorted((tmp_path / "unordered.jsonl").open("rb")) == sorted((tmp_path / "whole.jsonl").open("rb"))


def test_parts_concatenate_to_the_whole(whole, generate, tmp_path):
    for part in range(1, 6):
        assert generate(f"part-{part}", "--part", f"{part}/5").exit_code == 0
    assert b"".join((tmp_path / f"part-{part}").read_bytes() for part in range(1, 6)) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", 1), "seed was 0 and is 1 now"),
        (("--temperature", 0.5), "temperature was 1.3 and is 0.5 now"),
        (("--max-new-tokens", 31), "max_new_tokens was 30 and is 31 now"),
        (("--stop", "x"), "stop was [] and is ['x'] now"),
        (("--dtype", "bfloat16"), "dtype was float32 and is bfloat16 now"),
    ],
)
def test_changed_settings_are_refused_by_name(options, message, whole, generate, tmp_path):
    result = generate("whole.jsonl", "--resume", *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert f"in {tmp_path / 'whole.jsonl'} line 1" in result.stderr
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


def test_another_model_is_refused_and_a_moved_one_is_not(whole, generate, model_dir, adapter_dir, tmp_path):
    assert "fingerprint was" in generate("whole.jsonl", "--resume", model=adapter_dir).stderr
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in model_dir.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert generate("whole.jsonl", "--resume", model=moved).exit_code == 0


def test_changed_prompts_are_refused(whole, generate, write_prompts, tmp_path):
    changed = write_prompts([PROMPTS[0] | {"prompt": "dog"}, *PROMPTS[1:]])
    result = generate("whole.jsonl", "--resume", prompts=changed)
    assert 'sample 0 of problem "p/0" has changed' in result.stderr
    result = generate("whole.jsonl", "--resume", prompts=write_prompts(PROMPTS[1:]))
    assert 'sample 0 of problem "p/0" is not asked for' in result.stderr
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem_id": "a"}\n', "does not say what made it"),
        ("{}\n", "the line has another format"),
        ("3\n", "a generation is not a JSON object"),
        ("precious\n", "invalid JSON"),
    ],
)
def test_a_file_of_something_else_is_refused(content, message, generate, tmp_path):
    (tmp_path / "other").write_text(content)
    result = generate("other", "--resume")
    assert result.exit_code == 1
    assert message in result.stderr
    assert (tmp_path / "other").read_text() == content


def test_files_beside_the_output_are_left_alone(whole, generate, tmp_path):
    names = (".mine.jsonl.partial", "mine.jsonl.partial", ".mine.jsonl.tmp")
    for name in names:
        (tmp_path / name).write_text("a stranger's")
    assert generate("mine.jsonl").exit_code == 0
    assert generate("mine.jsonl", "--resume").exit_code == 0
    assert (tmp_path / "mine.jsonl").read_bytes() == whole
    assert [(tmp_path / name).read_text() for name in names] == ["a stranger's"] * 3
    hidden = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert hidden == {".mine.jsonl.partial", ".mine.jsonl.tmp"}
    assert stat.S_IMODE((tmp_path / "mine.jsonl").stat().st_mode) == stat.S_IMODE((tmp_path / names[0]).stat().st_mode)


def test_a_named_pipe_and_a_device_take_lines(whole, generate, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    assert generate("pipe").exit_code == 0
    reader.join()
    assert read == [whole]
    assert generate("/dev/null").exit_code == 0
    result = generate("/dev/null", "--resume")
    assert result.exit_code == 1
    assert "is no file that can be read again" in result.stderr


def test_two_processes_do_not_write_one_file(generate, tmp_path):
    import fcntl

    with (tmp_path / "busy.jsonl").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = generate("busy.jsonl", "--overwrite")
    assert "another process is writing the file" in result.stderr


def test_resume_needs_a_file(run_infer, model_dir):
    assert run_infer("generate", model_dir, "-", "-", "--resume").exit_code == 2


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_is_none_is_wrong_usage(part, run_infer, model_dir):
    assert run_infer("generate", model_dir, "-", "-", f"--part={part}").exit_code == 2
