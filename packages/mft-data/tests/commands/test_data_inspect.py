"""The commands that look: inspect and preview, and the pure functions below them."""

import re
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from mft_data.cli import main
from mft_data.commands.inspect_dataset import load_lengths
from mft_data.dataset.mds import ShardWriter, encode_sample, mds_columns, read_row
from mft_data.dataset.shard_columns import parse_shard, read_arrays, read_ints, read_segment_lengths
from mft_data.display.length_histogram import format_bins, length_bins, length_percentiles
from mft_data.display.row_display import format_piece
from mft_data.display.summary import summary_table, unused_fields_lines

GOOD = {"chat_rounds": [{"role": "human", "content": "add"}, {"role": "bot", "content": "sum"}]}
SPECIAL = {"chat_rounds": [{"role": "human", "content": "<|im_end|>\x1b"}, {"role": "bot", "content": "sum"}]}
SHOWN = "<s>human\n<|im_end|>\u241b\n<s>bot\n⟦sum⟨<|im_end|> 2⟩⟧\n\n"
REFUSING_TEMPLATE = (
    "{% for m in messages %}{% if m['content'] == 'add' %}{{ raise_exception('no') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def manifest_of(names, fields):
    """A manifest with what a summary is made of; every task has the same counts, the first ones more tokens."""
    left_out = ("rejected", "duplicates", "over_limit", "contaminated", "overlong_dropped", "overlong_truncated")
    tasks = []
    for number, name in enumerate(names):
        counts = {"conversations": 3, "rows": 1, "tokens": 5000 - number, "supervised_tokens": 100}
        empty = dict.fromkeys(counts, 0)
        tasks.append(
            {
                "name": name,
                "conversations": dict.fromkeys(left_out, 1),
                "unused_fields": fields,
                "splits": {"train": counts, "validation": empty},
            }
        )
    return {"seq_length": 1024, "tasks": tasks}


@pytest.mark.parametrize("num_tasks", [20, 21, 2000])
def test_the_summary_of_many_tasks_is_short(num_tasks):
    names = [f"t{number}" for number in range(num_tasks)]
    manifest = manifest_of(names, {"meta": 2})
    shown, unused = summary_table(manifest).splitlines(), unused_fields_lines(manifest)
    if num_tasks == 20:
        assert [line.split()[0] for line in shown[1:]] == names
        assert unused == [f"{name}: fields not used: meta (2)" for name in names]
        return
    between = f"... {num_tasks - 15:,} tasks between ..."
    total = f"all {num_tasks:,} tasks"
    first = [line.split("  ")[0] for line in shown[1:]]
    assert first == [*names[:10], between, *names[-5:], total, "(inspect --json and --html have all tasks)"]
    tokens = sum(5000 - number for number in range(num_tasks))
    cells = [f"{3 * num_tasks:,}", f"{num_tasks:,}", f"{tokens:,}", f"{100 * num_tasks:,}"]
    assert shown[-2].split()[4:8] == cells
    assert unused == [f"{num_tasks:,} tasks: fields not used: meta ({2 * num_tasks:,})"]


@pytest.fixture
def run(tmp_path, tokenizer_dir, monkeypatch):
    """Runs a command in `tmp_path`, with the tokenizer where `TOKENIZER` stands; returns the result."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)

    def invoke(*arguments, exit_code=0, color=False):
        arguments = [str(tokenizer_dir) if argument == "TOKENIZER" else str(argument) for argument in arguments]
        result = CliRunner().invoke(main, arguments, color=color)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == exit_code, result.output
        return result

    return invoke


def write_stream(stream_dir, rows):
    """Writes rows, each given as the lengths of its segments, and returns them as (ids, mask, lengths)."""
    writer = ShardWriter(stream_dir, mds_columns("uint16"))
    written = []
    for number, lengths in enumerate(rows):
        input_ids = np.arange(sum(lengths), dtype=np.uint16)
        loss_mask = (input_ids % 3 == number % 3).astype(np.uint8)
        written.append((input_ids, loss_mask, np.array(lengths, np.uint32)))
        writer.write(encode_sample(*written[-1], number))
    writer.finish()
    return written


def test_inspect_shows_each_task_and_split(run, write_task):
    write_task("t", [GOOD, SPECIAL])
    write_task("u", [GOOD, SPECIAL, GOOD | {"id": 3}])
    built = run("build", "t", "u", "out", "--tokenizer", "TOKENIZER", "--packing", "none")
    shown = run("inspect", "out").stdout
    table, *histograms = shown.split("\n\n")
    assert table == built.stderr.rstrip("\n")
    header, *rows = (line.split() for line in table.splitlines())
    assert header[:3] == ["task", "split", "conversations"]
    assert {tuple(row[:3]) for row in rows} >= {("t", "train", "1"), ("t", "validation", "1")}
    assert [block.splitlines()[0] for block in histograms[::2]] == [
        "t: tokens per conversation",
        "u: tokens per conversation",
    ]
    summaries = orjson.loads(run("inspect", "out", "--json").stdout)
    assert [(summary["task"], summary["split"]) for summary in summaries] == [tuple(row[:2]) for row in rows]
    for summary in summaries:
        lengths = read_segment_lengths(Path("out", summary["split"], summary["task"]))
        assert summary["supervised_share"] == summary["supervised_tokens"] / summary["tokens"]
        assert summary["fill"] == summary["tokens"] / (2048 * summary["rows"])
        assert summary["lengths"]["max"] == lengths.max()
        assert sum(entry["conversations"] for entry in summary["histogram"]) == summary["conversations"]


def test_histogram_by_hand():
    lengths = np.array([5, 9, 9, 9, 11, 47, 3_000])
    assert length_percentiles(lengths) == {"p50": 9, "p90": 3_000, "p99": 3_000, "max": 3_000}
    bins = length_bins(lengths)
    assert bins[:3] == [
        {"from": 4, "to": 5, "conversations": 1},
        {"from": 6, "to": 7, "conversations": 0},
        {"from": 8, "to": 11, "conversations": 4},
    ]
    assert bins[-1] == {"from": 2_048, "to": 3_071, "conversations": 1}
    assert format_bins(bins)[:3] == [
        f"          4-5  1  {'█' * 15}▌",
        "          6-7  0",
        f"         8-11  4  {'█' * 62}",
    ]


@given(st.lists(st.integers(1, 2**31), min_size=1, max_size=50))
@example([1])
@example([2**31])
def test_bins_hold_every_conversation_and_fit_a_terminal(lengths):
    bins = length_bins(np.array(lengths, np.uint32))
    for entry in bins:
        assert entry["conversations"] == sum(entry["from"] <= length <= entry["to"] for length in lengths)
    assert sum(entry["conversations"] for entry in bins) == len(lengths)
    assert bins[0]["conversations"]
    assert bins[-1]["conversations"]
    lines = format_bins(bins)
    assert max(map(len, lines)) <= 80
    assert [bool(entry["conversations"]) for entry in bins] == [line[-1] in "█▏▎▍▌▋▊▉" for line in lines]
    percentiles = length_percentiles(np.array(lengths, np.uint32))
    assert sum(length <= percentiles["p50"] for length in lengths) >= len(lengths) / 2
    assert list(percentiles.values()) == sorted(percentiles.values())


@given(st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=300), min_size=1, max_size=5))
def test_columns_of_a_shard_are_those_of_its_rows(tmp_path_factory, rows):
    stream_dir = tmp_path_factory.mktemp("stream")
    written = write_stream(stream_dir, rows)
    shard = parse_shard((stream_dir / "shard.00000.mds").read_bytes())
    assert shard.num_rows == len(rows)
    assert read_ints(shard, "task_id").tolist() == list(range(len(rows)))
    for position, name in enumerate(("input_ids", "loss_mask", "segment_lengths")):
        arrays = read_arrays(shard, name)
        assert arrays.lengths.tolist() == [len(row[position]) for row in written]
        for row, values in enumerate(np.split(arrays.values, arrays.bounds[1:-1])):
            assert values.tolist() == written[row][position].tolist() == read_row(stream_dir, row)[name].tolist()
    assert read_segment_lengths(stream_dir).tolist() == [length for row in rows for length in row]


def test_lengths_come_from_all_shards_of_a_stream(tmp_path, monkeypatch):
    monkeypatch.setattr("mft_data.dataset.mds.SHARD_BYTES", 2_000)
    rows = [[number + 1, 200] for number in range(20)]
    write_stream(tmp_path / "train" / "t", rows)
    assert len(list((tmp_path / "train" / "t").glob("shard.*.mds"))) > 3
    manifest = {
        "tasks": [{"name": "t", "splits": {"train": {"conversations": 40}, "validation": {"conversations": 0}}}]
    }
    (lengths,) = load_lengths(tmp_path, manifest).values()
    assert lengths.tolist() == [length for row in rows for length in row]


def test_a_row_is_shown_with_its_borders_positions_and_special_tokens(run, write_task):
    write_task("t", [SPECIAL, SPECIAL])
    run("build", "t", "out", "--tokenizer", "TOKENIZER")
    answer = orjson.loads(run("inspect", "out", "--task", "t", "--row", "0", "--json").stdout)
    first, second = answer.pop("segments")
    length, supervised = len(first["input_ids"]), sum(first["loss_mask"])
    assert answer == {
        "task": "t",
        "task_id": 0,
        "split": "train",
        "row": 0,
        "num_rows": 1,
        "num_tokens": 2 * length,
        "seq_length": 2048,
    }
    assert (first["start"], second["start"]) == (0, length)
    assert first["pieces"][-3:] == [
        {"text": "sum", "is_supervised": True, "special_id": None},
        {"text": "<|im_end|>", "is_supervised": True, "special_id": 2},
        {"text": "\n", "is_supervised": False, "special_id": None},
    ]
    assert "".join(piece["text"] for piece in second["pieces"]).startswith("<s>human\n<|im_end|>\x1b\n")
    shown = run("inspect", "out", "--task", "t", "--row", "0").stdout
    assert shown == (
        f"task t (task_id 0), train row 0 of 1: {2 * length} of 2048 tokens, {2 * supervised} supervised\n"
        f"── segment 1 of 2: tokens 0-{length - 1}, position_ids 0-{length - 1}, {supervised} supervised ──\n{SHOWN}"
        f"── segment 2 of 2: tokens {length}-{2 * length - 1}, position_ids 0-{length - 1}, {supervised} supervised ──"
        f"\n{SHOWN}"
    )


def test_colours_are_for_terminals_that_want_them(run, write_task, monkeypatch):
    write_task("t", [GOOD])
    run("build", "t", "out", "--tokenizer", "TOKENIZER")
    command = ("inspect", "out", "--task", "t", "--row", "0")
    coloured = run(*command, color=True).stdout
    assert "\x1b[32msum" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == run(*command).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run(*command, color=True).stdout


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\r", "\x7f", "\x9b", "\u202e", "\u2066"])
def test_no_character_reaches_the_terminal_as_a_command(character):
    shown = format_piece({"text": f"a{character}b\n\tc", "is_supervised": False, "special_id": None})
    assert character not in shown.replace("\x1b[0m", "")
    assert shown.startswith("a")
    assert "b\n\tc" in shown


def test_inspect_of_what_is_not_there(run, write_task, tmp_path):
    write_task("t", [GOOD])
    run("build", "t", "out", "--tokenizer", "TOKENIZER")

    def error(*arguments):
        result = run("inspect", *arguments, exit_code=1)
        assert (result.stdout, result.stderr.count("\n")) == ("", 1)
        return result.stderr

    assert error("t") == 'Error: "t" is not a complete dataset (it has no manifest.json)\n'
    assert error("gone") == 'Error: "gone" is not a complete dataset (it has no manifest.json)\n'
    assert 'no task "u", in out, use one of t' in error("out", "--task", "u", "--row", "0")
    assert 'task "t" has 1 train row, rows count from 0' in error("out", "--task", "t", "--row", "1")
    assert "has 0 validation rows" in error("out", "--task=t", "--row=0", "--split=validation")
    assert "--task and --row go together" in run("inspect", "out", "--row", "1", exit_code=2).stderr
    shard = tmp_path / "out" / "train" / "t" / "shard.00000.mds"
    whole = shard.read_bytes()
    for damaged in (b"\0\0", whole[:-1], b"", b"\xff" * 100):
        shard.write_bytes(damaged)
        assert "the rows are damaged (" in error("out")
        assert "mft-data verify" in error("out")
    shard.write_bytes(b"\0\0")
    assert "the rows cannot be read" in error("out", "--task", "t", "--row", "0")
    shard.unlink()
    assert "shard.00000.mds" in error("out")
    shard.write_bytes(whole)
    (tmp_path / "out" / "tokenizer" / "tokenizer.json").unlink()
    assert "the tokenizer cannot be read (No such file" in error("out", "--task", "t", "--row", "0")
    manifest_path = tmp_path / "out" / "manifest.json"
    manifest = orjson.loads(manifest_path.read_bytes())
    manifest["tasks"][0]["splits"]["train"]["conversations"] += 1
    manifest_path.write_bytes(orjson.dumps(manifest))
    assert "the rows are damaged (1 conversation instead of the manifest's 2)" in error("out")
    manifest_path.write_text('{"format_version": "3"}')
    assert "format_version '3' is neither '1' nor '2'" in error("out")
    manifest_path.write_text("{")
    assert "the manifest is damaged" in error("out")


def test_preview_shows_what_a_build_would_encode(run, write_task):
    long = {"chat_rounds": [GOOD["chat_rounds"][0], {"role": "bot", "content": "sum " * 50}]}
    write_task("t", [SPECIAL, long, GOOD, GOOD])
    run("build", "t", "out", "--tokenizer", "TOKENIZER", "--packing", "none", "--validation", "0")
    options = ("--tokenizer", "TOKENIZER", "--seq-length", "40")
    shown = run("preview", "t", *options).stdout
    headings = re.findall(
        r"── t/part.jsonl line (\d): (\d+) tokens, (\d+) supervised(?:, overlong by (\d+))? ──", shown
    )
    assert [line for line, *_ in headings] == ["1", "2", "3"]
    assert [bool(overlong) for *_, overlong in headings] == [False, True, False]
    assert int(headings[1][3]) == int(headings[1][1]) - 40
    assert shown.split("\n", 1)[1].startswith(SHOWN)
    built = [orjson.loads(run("inspect", "out", "--task=t", f"--row={row}", "--json").stdout) for row in range(4)]
    found = sorted((row["num_tokens"], sum(row["segments"][0]["loss_mask"])) for row in built)
    assert sorted({(int(tokens), int(supervised)) for _, tokens, supervised, _ in headings}) == sorted(set(found))
    assert sorted(Path().iterdir()) == [Path("out"), Path("t")]


def test_preview_takes_the_options_of_build(run, write_task):
    write_task("t", [{"text": "for i", "messages": GOOD["chat_rounds"]}])
    options = ("--tokenizer", "TOKENIZER")
    shown = run("preview", "t", *options, "--format", "messages", "--role-marker", r"human=<|im_start|>u\n").stdout
    assert "⟨<|im_start|> 1⟩u\nadd\n<s>bot\n⟦sum⟨<|im_end|> 2⟩⟧" in shown
    assert "\nfor⟦ i⟨<|im_end|> 2⟩⟧\n" in run("preview", "t", *options, "--format", "text").stdout
    assert (
        "⟨<|endoftext|> 0⟩⟧"
        in run("preview", "t", *options, "--format", "messages", "--eos-token", "<|endoftext|>").stdout
    )


def test_preview_refuses_what_a_build_refuses(run, write_task):
    write_task("t", [GOOD, {"chat_rounds": 3}])
    write_task("void", [b""])

    def error(source, *options, num_shown=0):
        result = run("preview", source, "--tokenizer", "TOKENIZER", *options, exit_code=1)
        assert (result.stdout.count("── t/"), result.stderr.count("\n")) == (num_shown, 1)
        return result.stderr

    assert error("t", num_shown=1) == 'Error: field "chat_rounds" is a number, not a list, in t/part.jsonl line 2\n'
    assert error("gone") == 'Error: source "gone" does not exist\n'
    assert error("void") == 'Error: source "void" has no conversations\n'
    assert '"<|im_edn|>" is not a token' in error("t", "--rows", "1", "--eos-token", "<|im_edn|>")
    Path("refuses.jinja").write_text(REFUSING_TEMPLATE)
    assert "line 1" in error("t", "--rows", "1", "--template", "refuses.jinja")
    run("preview", "t", "--tokenizer", "TOKENIZER", "--rows", "1")
    run("preview", "t", "--tokenizer", "TOKENIZER", "--rows", "0", exit_code=2)


def test_many_tasks_have_one_histogram(tmp_path, tokenizer_dir):
    record = {"chat_rounds": [{"role": "human", "content": "add"}, {"role": "bot", "content": "sum"}]}
    (tmp_path / "a.jsonl").write_bytes(orjson.dumps(record))
    tasks = "".join(f"  t{number:02}: {{paths: {tmp_path / 'a.jsonl'}}}\n" for number in range(21))
    (tmp_path / "tasks.yaml").write_text(f"tasks:\n{tasks}")
    arguments = ["build", str(tmp_path / "tasks.yaml"), str(tmp_path / "out"), "--tokenizer", str(tokenizer_dir)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "out")]).stdout
    assert shown.count("tokens per conversation") == 1
    assert "all 21 tasks together" in shown
    assert "t20" in shown
    assert len(orjson.loads(CliRunner().invoke(main, ["inspect", str(tmp_path / "out"), "--json"]).stdout)) == 21
