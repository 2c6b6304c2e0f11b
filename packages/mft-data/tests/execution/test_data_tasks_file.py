"""The tasks file: paths, fields, limits, weights, validation and template arguments of each task, and its errors."""

import re

import numpy as np
import orjson
import pytest
from streaming import LocalDataset

CHAT_TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}{{ ' ' ~ mood if mood }}\n"
    "{{ message.content }}<|im_end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ ' ' ~ mood if mood }}\n{%- endif -%}"
)


def lines(records):
    return b"".join(orjson.dumps(record) + b"\n" for record in records)


def conversations(dataset, task, tokenizer, split=None):
    """The text of every conversation of a task, sorted."""
    found = []
    for name in [split] if split else ["train", "validation"]:
        if not (dataset / name / task).is_dir():
            continue
        rows = LocalDataset(str(dataset / name / task))
        for row in (rows[position] for position in range(len(rows))):
            pieces = np.split(row["input_ids"], np.cumsum(row["segment_lengths"])[:-1])
            found += [tokenizer.decode(ids) for ids in pieces]
    return sorted(found)


def manifest_of(dataset):
    return orjson.loads((dataset / "manifest.json").read_bytes())


def test_a_task_has_paths_patterns_fields_and_a_format(run, tmp_path, helpers, families):
    for folder in ("dumps/old", "more"):
        (tmp_path / folder).mkdir(parents=True)
    pairs = [{"problem": f"add {n}", "solution": f"return {n}", "prompt": f"formatted {n}"} for n in range(40)]
    (tmp_path / "dumps/sql-1.jsonl").write_bytes(lines(pairs[:10]))
    (tmp_path / "dumps/sql-2.jsonl").write_bytes(lines(pairs[10:20]))
    (tmp_path / "dumps/other.jsonl").write_bytes(lines([{"text": "not asked for"}]))
    (tmp_path / "dumps/old/a.jsonl").write_bytes(lines(pairs[20:30]))
    (tmp_path / "more/a.jsonl").write_bytes(lines(pairs[30:]))
    (tmp_path / "tasks.yaml").write_text(
        "tasks:\n"
        "  sql:\n"
        "    paths: [dumps/sql-*.jsonl, dumps/sql-1.jsonl, dumps/old, more/]\n"
        "    fields: {problem: prompt, solution: response}\n"
        "  code: {paths: more/a.jsonl, format: prompt/solution}\n"
    )
    run("build", "tasks.yaml", "out")
    tokenizer = families["byte_level"].tokenizer
    assert conversations(tmp_path / "out", "sql", tokenizer) == sorted(
        f"<s>human\nadd {n}\n<s>bot\nreturn {n}<|im_end|>\n" for n in range(40)
    )
    assert conversations(tmp_path / "out", "code", tokenizer)[0].startswith("<s>human\nformatted 30\n")
    sql, code = manifest_of(tmp_path / "out")["tasks"]
    assert [source["file"] for source in sql["sources"]] == [
        "dumps/old/a.jsonl",
        "dumps/sql-1.jsonl",
        "dumps/sql-2.jsonl",
        "more/a.jsonl",
    ]
    assert [source["file"] for source in code["sources"]] == ["a.jsonl"]
    # What the mapping put another field in the place of is not lost without a word.
    assert sql["unused_fields"] == {"(prompt)": 40}
    assert sql["settings"]["fields"] == {"problem": "prompt", "solution": "response"}
    assert code["settings"]["record_format"] == "prompt/solution"
    run("verify", "out")
    shown = run("preview", "tasks.yaml", "--rows", "1", "--tokenizer", families["byte_level"].tokenizer_dir).stdout
    assert shown.count("tokens, ") == 2
    # The command line says the same of one task.
    options = ("--field", "problem=prompt", "--field", "solution=response")
    run("build", "code=more", "one", *options)
    assert conversations(tmp_path / "one", "code", tokenizer) == sorted(
        f"<s>human\nadd {n}\n<s>bot\nreturn {n}<|im_end|>\n" for n in range(30, 40)
    )


def write_limited(tmp_path, records, limit=60):
    (tmp_path / "t").mkdir(exist_ok=True)
    (tmp_path / "t" / "a.jsonl").write_bytes(lines(records[: len(records) // 3]))
    (tmp_path / "t" / "b.jsonl").write_bytes(lines(records[len(records) // 3 :]))
    (tmp_path / "u").mkdir(exist_ok=True)
    (tmp_path / "u" / "a.jsonl").write_bytes(lines(records))
    (tmp_path / "tasks.yaml").write_text(
        f"tasks:\n  t: {{paths: t, limit: {limit}, validation: 0.2}}\n  u: {{paths: u}}\n"
    )


def test_a_limit_keeps_the_same_conversations_in_any_order_part_and_number_of_workers(
    run, tmp_path, helpers, families, small_chunks
):
    tokenizer = families["byte_level"].tokenizer
    records = [helpers.record(number) for number in range(900)]
    write_limited(tmp_path, records)
    run("build", "tasks.yaml", "one", "--workers", "1")
    kept = conversations(tmp_path / "one", "t", tokenizer)
    assert len(kept) == 60
    held_out = conversations(tmp_path / "one", "t", tokenizer, "validation")
    assert 3 <= len(held_out) <= 25  # a fair sample of both sides
    t, u = manifest_of(tmp_path / "one")["tasks"]
    assert (t["conversations"]["over_limit"], u["conversations"]["over_limit"]) == (840, 0)
    assert len(conversations(tmp_path / "one", "u", tokenizer)) == 900
    run("verify", "one")
    run("build", "tasks.yaml", "two", "--workers", "2")
    for part in (1, 2, 3):
        run("build", "tasks.yaml", f"parts{part}", "--part", f"{part}/3", "--workers", "1")
    run("join", "parts1", "parts2", "parts3", "joined")
    whole = helpers.tree(tmp_path / "one")
    assert helpers.tree(tmp_path / "two") == whole
    assert helpers.tree(tmp_path / "joined") == whole
    write_limited(tmp_path, records[::-1])
    run("build", "tasks.yaml", "reversed", "--workers", "1")
    assert conversations(tmp_path / "reversed", "t", tokenizer) == kept
    # More records take the place of others, and move none to another side.
    write_limited(tmp_path, records[:450])
    run("build", "tasks.yaml", "fewer", "--workers", "1")
    fewer = conversations(tmp_path / "fewer", "t", tokenizer)
    assert len(fewer) == 60
    assert set(kept) & {text for text in kept if text in conversations(tmp_path / "fewer", "u", tokenizer)} <= set(
        fewer
    )


def test_a_limit_is_one_of_different_conversations_where_duplicates_are_dropped(run, tmp_path, helpers, families):
    write_limited(tmp_path, [helpers.record(number % 100) for number in range(300)])
    run("build", "tasks.yaml", "out", "--dedup", "exact", "--validation", "0")
    t, u = (task["conversations"] for task in manifest_of(tmp_path / "out")["tasks"])
    assert (t["duplicates"], t["over_limit"]) == (120, 120)
    # What one task left out over its limit is not lost to the other.
    assert (u["duplicates"], u["over_limit"]) == (60 * 3 + 40 * 2, 0)
    write_limited(tmp_path, [helpers.record(1) for _ in range(90)], limit=7)
    run("build", "tasks.yaml", "same", "--validation", "0")
    assert manifest_of(tmp_path / "same")["tasks"][0]["splits"]["train"]["conversations"] == 7


def edited(tmp_path, records):
    """Lines of a file, and the same with edits of no more bytes, far from its ends and behind the first chunks."""
    content = lines(records)
    middle = content.index(b"add 1400")
    assert min(middle, len(content) - middle) > 1 << 16
    return content, re.sub(rb"add (14\d\d)", rb"sub \1", content)


def test_an_edit_that_changes_what_a_limit_keeps_is_noticed(run, tmp_path, helpers, small_chunks):
    (tmp_path / "t").mkdir()
    records = [helpers.record(number) for number in range(2500)]
    records[600] = records[900] = {"chat_rounds": []}
    before, after = edited(tmp_path, records)
    (tmp_path / "t" / "a.jsonl").write_bytes(before)
    options = ("--workers", "1", "--limit", "1200", "--max-rejects")
    assert "more than 1 record was refused" in run("build", "t", "out", *options, "1", exit_code=1).stderr
    (tmp_path / "t" / "a.jsonl").write_bytes(after)
    again = ("build", "t", "out", *options, "2", "--resume")
    error = run(*again, exit_code=1).stderr
    assert "a file has changed since the unfinished build read it, and with it what is left out of others" in error
    (tmp_path / "t" / "a.jsonl").write_bytes(before)
    run(*again)
    run("build", "t", "fresh", *options, "2")
    assert helpers.tree(tmp_path / "out") == helpers.tree(tmp_path / "fresh")


def test_parts_with_other_limits_are_not_joined(run, tmp_path, helpers, small_chunks):
    (tmp_path / "t").mkdir()
    before, after = edited(tmp_path, [helpers.record(number) for number in range(2500)])
    for part, content in ((1, before), (2, after)):
        (tmp_path / "t" / "a.jsonl").write_bytes(content)
        run("build", "t", f"part{part}", "--part", f"{part}/2", "--limit", "50")
    assert "found other conversations to be over a limit" in run("join", "part1", "part2", "out", exit_code=1).stderr


def test_a_group_is_on_one_side(run, tmp_path, families):
    tokenizer = families["byte_level"].tokenizer
    answers = [
        {"key": n, "messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{m}"}]}
        for n in range(40)
        for m in range(5)
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(answers))
    (tmp_path / "tasks.yaml").write_text(
        "tasks:\n"
        "  field: {paths: a.jsonl, validation: 0.3, validation_group: key}\n"
        "  prompt: {paths: a.jsonl, validation: 0.3, validation_group: (prompt)}\n"
        "  alone: {paths: a.jsonl, validation: 0.3}\n"
    )
    run("build", "tasks.yaml", "out")
    for task in ("field", "prompt", "alone"):
        train, validation = (
            {text.split("\n")[1] for text in conversations(tmp_path / "out", task, tokenizer, split)}
            for split in ("train", "validation")
        )
        assert train | validation == {f"q{n}" for n in range(40)}
        assert bool(train & validation) == (task == "alone")
    assert "key" not in manifest_of(tmp_path / "out")["tasks"][0]["unused_fields"]
    assert "key" in manifest_of(tmp_path / "out")["tasks"][1]["unused_fields"]
    # Where the fraction leaves a side empty, a whole group changes sides.
    (tmp_path / "tasks.yaml").write_text(
        "tasks:\n  field: {paths: a.jsonl, validation: 1.0e-9, validation_group: key}\n"
    )
    run("build", "tasks.yaml", "small")
    assert len(conversations(tmp_path / "small", "field", tokenizer, "validation")) == 5
    (tmp_path / "a.jsonl").write_bytes(lines([*answers, {"messages": answers[0]["messages"]}]))
    error = run("build", "tasks.yaml", "bad", exit_code=1).stderr
    assert 'field "key", the validation group, is missing, in a.jsonl line 201' in error


def test_validation_paths_weights_and_template_arguments(run, tmp_path, helpers, families):
    tokenizer = families["byte_level"].tokenizer
    (tmp_path / "chat.jinja").write_text(CHAT_TEMPLATE)
    (tmp_path / "a.jsonl").write_bytes(lines([helpers.record(n) | ({"weight": 3} if n else {}) for n in range(9)]))
    (tmp_path / "b.jsonl").write_bytes(lines([helpers.record(n) for n in range(20, 24)]))
    (tmp_path / "tasks.yaml").write_text(
        "tasks:\n"
        "  a: {paths: a.jsonl, validation: b.jsonl, weight: 0.5, template_arguments: {mood: calm}}\n"
        "  b: {paths: b.jsonl, validation: 0}\n"
    )
    run("build", "tasks.yaml", "out", "--template", "chat.jinja")
    a, b = manifest_of(tmp_path / "out")["tasks"]
    assert [source["split"] for source in a["sources"]] == ["train", "validation"]
    assert (a["splits"]["train"]["conversations"], a["splits"]["validation"]["conversations"]) == (9, 4)
    assert b["splits"]["validation"]["conversations"] == 0
    texts = conversations(tmp_path / "out", "a", tokenizer)
    assert all("<|im_start|>assistant calm\n" in text for text in texts)
    assert not any("calm" in text for text in conversations(tmp_path / "out", "b", tokenizer))
    rows = LocalDataset(str(tmp_path / "out" / "train" / "a"))
    weights = np.concatenate([rows[position]["segment_weights"] for position in range(len(rows))])
    assert sorted(weights.tolist()) == [0.5, *[1.5] * 8]
    assert a["settings"]["template_arguments"] == {"mood": "calm"}
    error = run("build", "tasks.yaml", "mft", exit_code=1).stderr
    assert error == (
        'Error: template_arguments: the template mft takes none, in task "a", '
        "leave them out, or choose a chat template\n"
    )


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("tasks:\n  t:\n    path: a\n", 'unknown key "tasks.t.path", in tasks.yaml line 3, did you mean "paths"?'),
        ("task: {}\n", 'unknown key "task", in tasks.yaml line 1, did you mean "tasks"?'),
        ("tasks:\n  t: {limit: 3}\n", 'key "tasks.t.paths" is missing, in tasks.yaml line 2, add `paths: ...`'),
        (
            "tasks:\n  t: {paths: a}\n  t: {paths: b}\n",
            'key "tasks.t" is given twice, first on line 2, in tasks.yaml line 3',
        ),
        ("tasks: [a]\n", '"tasks" is not a mapping, in tasks.yaml line 1, write `key: value` under it'),
        ("tasks: {}\n", "there are no tasks, in tasks.yaml, write `NAME: {paths: ...}` under `tasks:`"),
        ("tasks:\n  t: {paths: 'x*.jsonl'}\n", '"x*.jsonl" does not exist, in tasks.yaml line 2, correct or remove it'),
        (
            "tasks:\n  t: {paths: a.jsonl, limit: 0}\n",
            '"tasks.t.limit" is 0: write a whole number from 1, in tasks.yaml line 2',
        ),
        (
            "tasks:\n  t: {paths: a.jsonl, weight: no}\n",
            '"tasks.t.weight" is False: write a number from 1e-06 to 1e+06, in tasks.yaml line 2',
        ),
        (
            "tasks:\n  t: {paths: a.jsonl, validation: 1}\n",
            '"tasks.t.validation" is 1: write a fraction from 0 to below 1, '
            "or paths of validation data, in tasks.yaml line 2",
        ),
        (
            "tasks:\n  t:\n    paths: a.jsonl\n    format: mesages\n",
            '"tasks.t.format" is \'mesages\': did you mean "messages"?, in tasks.yaml line 4',
        ),
        (
            "tasks:\n  t:\n    paths: a.jsonl\n    fields: {x: promt}\n",
            '"tasks.t.fields" is {\'x\': \'promt\'}: "x" is to be read as "promt", which no shape of records has '
            '(did you mean "prompt"?), in tasks.yaml line 4',
        ),
        (
            "tasks:\n  t: {paths: a.jsonl, validation: a.jsonl, validation_group: k}\n",
            '"tasks.t.validation_group" has no meaning beside paths of validation data, '
            "in tasks.yaml line 2, leave one out",
        ),
        (
            "tasks:\n  a b: {paths: a.jsonl}\n",
            '"a b" cannot name a task (letters, digits, ".", "_", "-"; the first a letter or digit), '
            "in tasks.yaml line 2, name it otherwise",
        ),
        ("tasks: [\n", "not valid YAML: expected the node content, but found '<stream end>', in tasks.yaml line 2"),
    ],
)
def test_what_is_wrong_with_a_tasks_file_is_said_with_its_line(run, tmp_path, helpers, content, error):
    (tmp_path / "a.jsonl").write_bytes(lines([helpers.record(1)]))
    (tmp_path / "tasks.yaml").write_text(content)
    assert run("build", "tasks.yaml", "out", exit_code=1).stderr == f"Error: {error}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "tasks.yaml"]


def test_a_tasks_file_stands_alone(run, tmp_path, write_task, helpers):
    write_task("t", [helpers.record(1)])
    (tmp_path / "tasks.yaml").write_text("tasks:\n  u: {paths: t}\n")
    assert "has other sources beside it" in run("build", "tasks.yaml", "t", "out", exit_code=1).stderr
    assert "is to be read as" in run("build", "t", "out", "--field", "a=b", exit_code=2).stderr
