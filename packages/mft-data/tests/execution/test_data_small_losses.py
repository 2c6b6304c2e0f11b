"""What a build might lose or keep without a word: unused fields, links, pipes, tasks without training rows."""

import os

import numpy as np
import orjson
import pytest

from mft_data.execution.plan import usable_cores


def manifest_of(dataset):
    """The manifest of a dataset."""
    return orjson.loads((dataset / "manifest.json").read_bytes())


def test_unused_fields_are_counted_listed_and_refused_if_asked(run, write_task, tmp_path, helpers):
    rounds = helpers.record(1)["chat_rounds"]
    write_task("t", [{**helpers.record(n), "id": n, "score": n, "tools": ["x"][: n % 2]} for n in range(4)])
    write_task("other", [{"chat_rounds": [rounds[0] | {"name": "Ann"}, rounds[1]]}])
    shown = run("build", "t", "other", "out", "--workers", "1").stderr
    assert "t: fields not used: score (4), tools (2)\n" in shown
    assert "other: fields not used: chat_rounds.name (1)\n" in shown
    tasks = manifest_of(tmp_path / "out")["tasks"]
    assert [task["unused_fields"] for task in tasks] == [{"score": 4, "tools": 2}, {"chat_rounds.name": 1}]
    error = run("build", "t", "out2", "--strict-fields", exit_code=1).stderr
    assert 'field "score" would not be used, in t/part.jsonl line 1, leave it out of the records' in error


def test_keys_that_are_data_do_not_fill_the_manifest(run, write_task, tmp_path, helpers):
    write_task("t", [{**helpers.record(n), f"key{n}": 1} for n in range(80)])
    run("build", "t", "out")
    unused = manifest_of(tmp_path / "out")["tasks"][0]["unused_fields"]
    assert (len(unused), unused["(others)"]) == (51, 30)


def test_linked_folders_are_read_and_circles_refused(run, write_task, tmp_path, helpers):
    write_task("t", [helpers.record(1)])
    write_task("elsewhere", [helpers.record(2)])
    (tmp_path / "t" / "linked").symlink_to(tmp_path / "elsewhere")
    run("build", "t", "out")
    assert [source["file"] for source in manifest_of(tmp_path / "out")["tasks"][0]["sources"]] == [
        "linked/part.jsonl",
        "part.jsonl",
    ]
    (tmp_path / "t" / "round").symlink_to(tmp_path)
    error = run("build", "t", "out2", exit_code=1).stderr
    assert 'the link "t/round" leads back to a folder around it' in error


def test_a_pipe_is_refused_and_does_not_hang(run, write_task, tmp_path, helpers):
    write_task("t", [helpers.record(1)])
    os.mkfifo(tmp_path / "t" / "pipe.jsonl")
    assert '"t/pipe.jsonl" is no regular file' in run("build", "t", "out", exit_code=1).stderr


def test_a_task_whose_training_records_are_all_refused_is_no_task(run, write_task, tmp_path, helpers):
    write_task("t", [{}, {}])
    write_task("held", [helpers.record(1)])
    options = ("--validation-source", "t=held", "--max-rejects", "2")
    error = run("build", "t", "out", *options, exit_code=1).stderr
    assert 'task "t" has no conversations to train on (3 read, 2 rejected)' in error
    assert not (tmp_path / "out").exists()


def test_deeply_nested_problems_are_read(run, write_task, tmp_path, helpers):
    words = "one two three four five six seven eight nine ten"
    nested = b'{"a": ' * 505 + b"[" * 505 + orjson.dumps(words) + b"]" * 505 + b"}" * 505
    (tmp_path / "problems.jsonl").write_bytes(nested)
    leak = {"chat_rounds": [{"role": "human", "content": words}, {"role": "bot", "content": "yes"}]}
    write_task("t", [helpers.record(1), leak])
    run("build", "t", "out", "--decontaminate", "problems.jsonl")
    assert manifest_of(tmp_path / "out")["tasks"][0]["conversations"]["contaminated"] == 1


def test_a_name_too_long_for_a_folder_is_told_before_any_work(run, write_task, helpers, monkeypatch):
    write_task("t", [helpers.record(1)])
    monkeypatch.setattr("mft_data.commands.build.make_plan", lambda *_: pytest.fail("the work has begun"))
    assert (
        "has 300 characters, too many for the name of a task"
        in run("build", f"{'n' * 300}=t", "out", exit_code=1).stderr
    )
    assert "File name too long" in run("build", "t", "o" * 300, exit_code=1).stderr
    assert "File name too long" in run("build", "t", "o" * 250, exit_code=1).stderr


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({}, None),
    ],
)
def test_workers_keep_to_the_containers_share_of_processors(tmp_path, files, cores):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    available = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == min(available, cores or available)


def test_verify_finds_links_and_empty_folders(run, write_task, tmp_path, helpers):
    write_task("t", [helpers.record(number) for number in range(9)])
    run("build", "t", "out")
    (tmp_path / "out" / "train" / "empty").mkdir()
    (tmp_path / "out" / "train" / "link").symlink_to(tmp_path)
    shard = tmp_path / "out" / "train" / "t" / "shard.00000.mds"
    shard.rename(tmp_path / "moved.mds")
    shard.symlink_to(tmp_path / "moved.mds")
    lines = run("verify", "out", exit_code=1).stderr.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "Error: 'empty' does not belong here",
        "Error: 'link' does not belong here",
        "Error: 'shard.00000.mds' does not belong here",
    ]


def near(name, system, question, answer="It is so because of what it says in the text that you gave me."):
    """A conversation under a system text."""
    rounds = [{"role": role, "content": text} for role, text in (("human", question), ("bot", answer))]
    return {"id": name, "chat_rounds": [{"role": "system", "content": system}, *rounds]}


def conversations_of(dataset):
    """What became of the records of the first task."""
    return manifest_of(dataset)["tasks"][0]["conversations"]


def test_distinct_questions_under_one_long_system_text_are_no_duplicates(run, write_task, tmp_path):
    generator = np.random.default_rng(0)
    system = " ".join(f"rule{number}" for number in range(600))
    texts = [" ".join(f"word{number}" for number in generator.integers(0, 5000, 12)) for _ in range(200)]
    write_task("t", [near(number, system, text, text[::-1]) for number, text in enumerate(texts)])
    result = run("build", "t", "out", "--dedup", "near", "--overlong", "drop", "--seq-length", "8192")
    assert conversations_of(tmp_path / "out")["duplicates"] == 0, result.stderr


def test_the_second_of_a_pair_whose_first_is_dropped_for_another_reason_stays(run, write_task, tmp_path):
    words = " ".join(f"word{number}" for number in range(60))
    answer = " ".join(f"other{number}" for number in range(200))
    leaked = "def median of a list of values sorted in the middle please"
    (tmp_path / "problems.jsonl").write_bytes(orjson.dumps({"prompt": leaked}))
    pairs = [
        {"prompt": f"{words} {leaked}", "response": answer},
        {"prompt": words, "response": answer},
        {"prompt": f"{words} again", "response": answer},
    ]
    write_task("t", pairs)
    run("build", "t", "out", "--dedup", "near", "--decontaminate", "problems.jsonl", "--seq-length", "2048")
    found = conversations_of(tmp_path / "out")
    assert (found["read"], found["contaminated"], found["duplicates"]) == (3, 1, 1)
    # The first is too long for a row.
    long = [{"prompt": words + " tail" * 4, "response": answer}, {"prompt": words, "response": answer}]
    write_task("u", long)
    run("build", "u", "fits", "--dedup", "near", "--seq-length", "4096")
    assert conversations_of(tmp_path / "fits")["duplicates"] == 1
    length = manifest_of(tmp_path / "fits")["tasks"][0]["splits"]["train"]["tokens"]
    run("build", "u", "cut", "--dedup", "near", "--seq-length", str(length - 1))
    found = conversations_of(tmp_path / "cut")
    assert (found["overlong_dropped"], found["duplicates"]) == (1, 0)
