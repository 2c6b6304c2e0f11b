"""What becomes of each record of a build: refused, held out, dropped, counted."""

import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from streaming import LocalDataset

from mft_data.cli import main


def test_the_first_bad_record_of_the_input_is_named_whoever_finds_it(
    sources, tokenizer_dir, tmp_path, small_chunks, helpers
):
    lines = (sources / "large" / "a.jsonl").read_bytes().splitlines(keepends=True)
    lines[650] = b"{}\n"
    lines[300] = b"[]\n"
    (tmp_path / "bad.jsonl").write_bytes(b"".join(lines))
    command = ["build", f"bad={tmp_path / 'bad.jsonl'}", str(tmp_path / "out"), "--tokenizer", str(tokenizer_dir)]
    for workers in ("1", "2"):
        result = CliRunner().invoke(main, [*command, "--seq-length", "128", "--workers", workers])
        assert result.exit_code == 1
        assert "bad.jsonl line 301" in result.stderr
        assert str(tmp_path / ".out.partial") in result.stderr
        shutil.rmtree(tmp_path / ".out.partial")
        assert helpers.leftovers(tmp_path) == []
    result = CliRunner().invoke(main, [*command, "--seq-length", "128", "--workers", "2", "--max-rejects", "2"])
    assert result.exit_code == 0, result.output
    rejects = [orjson.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_bytes().splitlines()]
    assert [reject["line"] for reject in rejects] == [301, 651]


def test_validation_sources_are_for_validation_alone(sources, tokenizer_dir, tmp_path, small_chunks, helpers):
    (tmp_path / "held.jsonl").write_bytes(
        b"".join(orjson.dumps(helpers.record(9000 + number)) + b"\n" for number in range(5))
    )
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
def test_every_task_of_two_or_more_has_both_sides(tokenizer_dir, tmp_path, count, fraction, small_chunks, helpers):
    lines = [orjson.dumps(helpers.record(number)) + b"\n" for number in range(count)]
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


def test_duplicates_are_dropped_and_counted(tokenizer_dir, tmp_path, small_chunks, helpers):
    lines = [orjson.dumps(helpers.record(number)) + b"\n" for number in range(300)]
    (tmp_path / "t.jsonl").write_bytes(b"".join(lines + lines[:50]))
    command = ["build", f"t={tmp_path / 't.jsonl'}", "--tokenizer", str(tokenizer_dir), "--seq-length", "128"]
    for workers in ("1", "2"):
        out = str(tmp_path / f"out{workers}")
        result = CliRunner().invoke(main, [*command, "--dedup", "exact", "--workers", workers, out])
        assert result.exit_code == 0, result.output
        task = orjson.loads(Path(out, "manifest.json").read_bytes())["tasks"][0]
        assert task["conversations"]["duplicates"] == 50
        assert sum(counts["conversations"] for counts in task["splits"].values()) == 300
    assert helpers.tree(tmp_path / "out1") == helpers.tree(tmp_path / "out2")
    result = CliRunner().invoke(main, [*command, "--dedup", "exact", "--part", "1/2", str(tmp_path / "part")])
    assert "--dedup needs the whole input" in result.stderr


@pytest.mark.parametrize(("action", "kept"), [("drop", 20), ("report", 21)])
def test_contaminated_conversations_are_counted_and_dropped(tokenizer_dir, tmp_path, action, kept, helpers):
    prompt = "def median(values): sort the values and return the one in the middle of the list please"
    problem = {"task_id": 1, "prompt": prompt, "code": "x", "test_list": []}
    (tmp_path / "problems.jsonl").write_bytes(orjson.dumps(problem))
    leak = {"chat_rounds": [{"role": "human", "content": prompt.upper()}, {"role": "bot", "content": "return 1"}]}
    lines = [orjson.dumps(entry) + b"\n" for entry in [*(helpers.record(number) for number in range(20)), leak]]
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


def test_a_conversation_that_the_template_refuses_is_a_refused_record(tokenizer_dir, tmp_path, small_chunks, helpers):
    (tmp_path / "chat.jinja").write_text(REFUSES_SYSTEM)
    with_system = {"chat_rounds": [{"role": "system", "content": "Be brief."}, *helpers.record(1)["chat_rounds"]]}
    entries = [
        *(helpers.record(number) for number in range(400)),
        with_system,
        *(helpers.record(number) for number in range(5)),
    ]
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
    assert helpers.tree(tmp_path / "out1") == helpers.tree(tmp_path / "out2")
    task = orjson.loads((tmp_path / "out1" / "manifest.json").read_bytes())["tasks"][0]
    assert task["conversations"]["rejected"] == 1
    assert task["conversations"]["duplicates"] == 5
    assert sum(counts["conversations"] for counts in task["splits"].values()) == 400
