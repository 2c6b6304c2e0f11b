"""The verify command: a fresh dataset passes, and no damage to any of its files does."""

import hashlib
import shutil
from contextlib import contextmanager

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_data.cli import main
from mft_data.dataset.fingerprints import manifest_bytes
from mft_data.dataset.mds import ShardWriter, encode_sample, mds_columns, read_row

LIMIT = 64
SHARD = "train/code/shard.00000.mds"
INDEX = "train/code/index.json"


def run(*arguments, exit_code=0):
    """The result of a command that has to end with `exit_code`."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == exit_code, result.output
    return result


def build(folder, tokenizer_dir):
    """Builds `folder / "dataset"`: two tasks with both splits and a reject each, one task without validation rows."""
    for task, numbers in (("code", range(30)), ("sql", range(12)), ("text", range(1))):
        (folder / task).mkdir()
        rounds = [
            [{"role": "human", "content": f"add {task}{n}"}, {"role": "bot", "content": f"sum {n} " * (1 + n % 5)}]
            for n in numbers
        ]
        lines = [orjson.dumps({"chat_rounds": chat_rounds}) for chat_rounds in [*rounds, [] if len(rounds) > 1 else 0]]
        (folder / task / "part.jsonl").write_bytes(b"\n".join(lines))
    sources = [folder / task for task in ("code", "sql", "text")]
    options = ("--seq-length", LIMIT, "--validation", "0.2", "--max-rejects", "3")
    run("build", *sources, folder / "dataset", "--tokenizer", tokenizer_dir, *options)
    return folder / "dataset"


@pytest.fixture(scope="module")
def built(tmp_path_factory, tokenizer_dir):
    """The dataset that no test changes."""
    return build(tmp_path_factory.mktemp("built"), tokenizer_dir)


@pytest.fixture
def dataset(built, tmp_path):
    """A copy to damage."""
    shutil.copytree(built, tmp_path / "dataset")
    return tmp_path / "dataset"


def verified_files(dataset):
    """Every file of the dataset."""
    return sorted(path for path in dataset.rglob("*") if path.is_file())


def problems(dataset, *options):
    """The lines that verify prints about a damaged dataset, without `Error: ` and with paths from the dataset."""
    result = run("verify", dataset, *options, exit_code=1)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith("Error: ") for line in lines)
    return [line.removeprefix("Error: ").replace(f"{dataset}/", "").replace(str(dataset), "") for line in lines]


@contextmanager
def changed_manifest(dataset):
    """The manifest, to be changed in the block and then sealed as if it had been built so."""
    path = dataset / "manifest.json"
    manifest = orjson.loads(path.read_bytes())
    yield manifest
    path.write_bytes(manifest_bytes(manifest))


@contextmanager
def changed_json(path):
    """The contents of a JSON file, to be changed in the block."""
    content = orjson.loads(path.read_bytes())
    yield content
    path.write_bytes(orjson.dumps(content))


def seal(dataset):
    """Makes the manifest's sums those of the indexes, as if they had been built so."""
    with changed_manifest(dataset) as manifest:
        for task in manifest["tasks"]:
            for split, counts in task["splits"].items():
                index_path = dataset / split / task["name"] / "index.json"
                if index_path.exists():
                    counts["index_sha256"] = hashlib.sha256(index_path.read_bytes()).hexdigest()


def write_rows(dataset, change, ids_dtype="uint16"):
    """Writes the rows of train/code anew, each of them first changed, as a faulty build would have."""
    stream_dir = dataset / "train" / "code"
    manifest = orjson.loads((dataset / "manifest.json").read_bytes())
    counts = manifest["tasks"][0]["splits"]["train"]
    rows = [read_row(stream_dir, row) for row in range(counts["rows"])]
    shutil.rmtree(stream_dir)
    writer = ShardWriter(stream_dir, mds_columns(ids_dtype))
    for number, row in enumerate(rows):
        row = {name: np.array(values) for name, values in row.items()}
        row["input_ids"] = row["input_ids"].astype(ids_dtype)
        change(number, row)
        writer.write(encode_sample(row["input_ids"], row["loss_mask"], row["segment_lengths"], int(row["task_id"])))
    writer.finish()
    seal(dataset)


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_a_fresh_dataset_passes(built, options):
    result = run("verify", built, *options)
    assert result.stdout == f"{built}\n"
    totals = [
        counts
        for task in orjson.loads((built / "manifest.json").read_bytes())["tasks"]
        for counts in task["splits"].values()
    ]
    held = ", ".join(
        f"{sum(counts[name] for counts in totals):,} {name.replace('_', ' ')}"
        for name in ("conversations", "rows", "tokens", "supervised_tokens")
    )
    checked = "sizes and counts are" if options else "every byte is"
    assert result.stderr == f"{checked} as built: 3 tasks, {held}\n"


@pytest.mark.parametrize("name", ["llama_metaspace", "added_beyond_vocab"])
def test_a_dataset_of_another_tokenizer_passes(families, name, tmp_path):
    run("verify", build(tmp_path, families[name].tokenizer_dir))


def test_a_flipped_byte_in_a_shard(dataset):
    content = bytearray((dataset / SHARD).read_bytes())
    content[len(content) // 2] ^= 1
    (dataset / SHARD).write_bytes(content)
    assert problems(dataset) == [
        f"the shard is not as it was built (its sha256 differs), in {SHARD}, copy it again or build the dataset anew"
    ]
    run("verify", dataset, "--quick")


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_a_truncated_shard(dataset, options):
    content = (dataset / SHARD).read_bytes()
    (dataset / SHARD).write_bytes(content[:-1])
    assert problems(dataset, *options) == [
        f"the shard has {len(content) - 1} bytes, its index says {len(content)}, in {SHARD}, "
        "copy it again or build the dataset anew"
    ]


@pytest.mark.parametrize("options", [(), ("--quick",)])
@pytest.mark.parametrize(
    "name", [SHARD, INDEX, "rejects.jsonl", "tokenizer/tokenizer.json", "tokenizer/chat_template.jinja"]
)
def test_a_missing_file(dataset, name, options):
    (dataset / name).unlink()
    folder, _, file_name = name.rpartition("/")
    assert problems(dataset, *options) == [
        f"{file_name} is missing, in {folder}, copy it again or build the dataset anew"
    ]


def test_a_missing_manifest(dataset):
    (dataset / "manifest.json").unlink()
    (line,) = problems(dataset)
    assert "is not a complete dataset (it has no manifest.json)" in line


@pytest.mark.parametrize("options", [(), ("--quick",)])
@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        ".hidden",
        "train/code/shard.00001.mds",
        "train/other/index.json",
        "validation/text/index.json",
        "tokenizer/vocab.json",
    ],
)
def test_an_extra_file(dataset, name, options):
    (dataset / name).parent.mkdir(parents=True, exist_ok=True)
    (dataset / name).write_text("{}")
    folder, _, file_name = name.rpartition("/")
    assert problems(dataset, *options) == [f"'{file_name}' does not belong here, in {folder}, remove it"]


def test_an_index_that_was_changed(dataset):
    (dataset / INDEX).write_bytes((dataset / INDEX).read_bytes() + b"\n")
    assert problems(dataset) == [
        f"the file is not as it was built (its sha256 differs), in {INDEX}, copy it again or build the dataset anew"
    ]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("samples",), 99, "the shard disagrees with its index about its columns or the number of its rows"),
        (("column_names", 0), "ids", "the shard disagrees with its index about its columns or the number of its rows"),
        (("raw_data", "hashes", "sha256"), "0" * 64, "the shard is not as it was built (its sha256 differs)"),
        (("raw_data", "bytes"), 7, "bytes, its index says 7"),
    ],
)
def test_an_index_that_disagrees_with_its_shards(dataset, path, value, message):
    with changed_json(dataset / INDEX) as index:
        field = index["shards"][0]
        for key in path[:-1]:
            field = field[key]
        field[path[-1]] = value
    seal(dataset)
    (line,) = problems(dataset)
    assert message in line
    assert f", in {SHARD}, " in line


@pytest.mark.parametrize(
    "index", [{}, [], {"shards": [{}]}, {"shards": 3}, "../x", "/etc/passwd", "a\nb", "shard.00000.mds.zstd"]
)
def test_an_index_that_makes_no_sense(dataset, index):
    with changed_json(dataset / INDEX) as content:
        if isinstance(index, str):
            content["shards"][0]["raw_data"]["basename"] = index
        if index == "shard.00000.mds.zstd":
            content["shards"][0]["zip_data"] = content["shards"][0]["raw_data"]
    if not isinstance(index, str):
        (dataset / INDEX).write_bytes(orjson.dumps(index))
    seal(dataset)
    assert problems(dataset) == [f"the index is damaged, in {INDEX}, build the dataset anew"]


@pytest.mark.parametrize("name", ["conversations", "rows", "tokens", "supervised_tokens"])
def test_a_manifest_that_disagrees_with_the_rows(dataset, name):
    with changed_manifest(dataset) as manifest:
        counts = manifest["tasks"][0]["splits"]["train"]
        counts[name] += 1
        if name == "conversations":
            manifest["tasks"][0]["conversations"]["read"] += 1
    assert problems(dataset) == [
        f"the shards hold {counts[name] - 1} {name.replace('_', ' ')}, the manifest says {counts[name]}, "
        "in train/code, build the dataset anew"
    ]
    if name == "rows":
        assert len(problems(dataset, "--quick")) == 1
    else:
        run("verify", dataset, "--quick")


@pytest.mark.parametrize("mode", ["drop", "report"])
def test_contaminated_conversations_are_missing_only_where_they_were_dropped(dataset, mode):
    with changed_manifest(dataset) as manifest:
        manifest["contaminated"] = mode
        manifest["tasks"][0]["conversations"]["contaminated"] = 5
        manifest["tasks"][0]["conversations"]["read"] += 5 if mode == "drop" else 0
    run("verify", dataset)
    with changed_manifest(dataset) as manifest:
        manifest["contaminated"] = {"drop": "report", "report": "drop"}[mode]
    assert len(problems(dataset)) == 1


def set_field(manifest, path, value):
    """Sets the field at a path."""
    for key in path[:-1]:
        manifest = manifest[key]
    manifest[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("tasks", 0, "task_id"), 1, 'the task_id of task "code" is not 0, in manifest.json'),
        (("tasks", 0, "conversations", "read"), 7, 'task "code" has 30 conversations in its splits, 6 were left of'),
        (("tasks", 0, "conversations", "rejected"), 2, '1 rejects of task "code" are listed, the manifest says 2'),
        (("columns", "input_ids"), "ndarray:uint32", 'the columns are not {"input_ids":"ndarray:uint16"'),
        (("max_token_id",), 70_000, "the manifest says max_token_id 70000, the tokenizer"),
        (("vocab_size",), 1, "the manifest says vocab_size 1, the tokenizer"),
        (("eos_token_id",), 1, "the manifest says eos_token_id 1, the tokenizer 2, in tokenizer"),
        (("eos_token",), "<|no|>", "the manifest says eos_token_id 2, the tokenizer None"),
        (("tokenizer_sha256",), "0" * 64, "the tokenizer is not that of tokenizer_sha256"),
        (("template_sha256",), "0" * 64, "the chat template is not that of template_sha256"),
        (("tokenizer_files", "tokenizer.json"), "0" * 64, "its sha256 differs), in tokenizer/tokenizer.json"),
        (("tokenizer_files", "a\nb"), "", r"'a\nb' cannot name a file of the tokenizer"),
        (("tokenizer_files",), {}, "the manifest does not list tokenizer.json, in tokenizer"),
        (("rejects_sha256",), "0" * 64, "its sha256 differs), in rejects.jsonl"),
        (("tasks", 0, "splits", "train", "index_sha256"), None, "the shards hold 0 rows, the manifest says"),
        (("tasks", 0, "name"), "../code", "'../code' cannot name a task, in manifest.json"),
        (("tasks", 0, "splits", "train", "rows"), "7", "no sound field tasks[0].splits.train.rows, in manifest.json"),
        (("tasks",), {}, "no sound field tasks, in manifest.json"),
        (("seq_length",), True, "no sound field seq_length, in manifest.json"),
        (("seq_length",), LIMIT // 4, f"has more than {LIMIT // 4} tokens (as have "),
    ],
)
def test_a_manifest_that_disagrees_with_other_files(dataset, path, value, message):
    with changed_manifest(dataset) as manifest:
        set_field(manifest, path, value)
    assert any(message in line for line in problems(dataset))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seed",), 1),
        (("packing",), "none"),
        (("producer",), "mft-data 9"),
        (("tasks", 0, "sources", 0, "sha256"), ""),
        (("content_sha256",), "0" * 64),
    ],
)
def test_a_field_that_only_the_manifest_knows_is_protected(dataset, path, value):
    manifest = orjson.loads((dataset / "manifest.json").read_bytes())
    set_field(manifest, path, value)
    (dataset / "manifest.json").write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    assert problems(dataset) == ["the manifest was changed after the build, in manifest.json, build the dataset anew"]


def test_damaged_tokenizer_files(dataset):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        with (dataset / "tokenizer" / name).open("ab") as handle:
            handle.write(b" ")
    lines = problems(dataset)
    assert sorted(line.split(", in ")[1].split(",")[0] for line in lines) == [
        "tokenizer/chat_template.jinja",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ]


def test_a_tokenizer_that_is_none(dataset):
    path = dataset / "tokenizer" / "tokenizer.json"
    path.write_bytes(b"{}")
    with changed_manifest(dataset) as manifest:
        manifest["tokenizer_files"]["tokenizer.json"] = hashlib.sha256(b"{}").hexdigest()
    (line,) = problems(dataset)
    assert line.startswith("the tokenizer cannot be read (")


@pytest.mark.parametrize("content", [b"{", b"[]\n", b'{"task": []}\n', b"{}\n"])
def test_rejects_that_are_none(dataset, content):
    (dataset / "rejects.jsonl").write_bytes(content)
    with changed_manifest(dataset) as manifest:
        manifest["rejects_sha256"] = hashlib.sha256(content).hexdigest()
    assert problems(dataset) == ["a line is not a reject, in rejects.jsonl, build the dataset anew"]


def edit(name, position, value):
    """A change of one value in row 1."""

    def change(number, row):
        if number == 1:
            row[name][position] = value

    return change


def drop_last(name):
    """A change that leaves the last value of every row's column out."""

    def change(_number, row):
        row[name] = row[name][:-1]

    return change


def lengthen(number, row):
    """Row 1 beyond LIMIT, with segments to match."""
    if number == 1:
        extra = LIMIT + 1 - len(row["input_ids"])
        row["input_ids"] = np.pad(row["input_ids"], (0, extra))
        row["loss_mask"] = np.pad(row["loss_mask"], (0, extra))
        row["segment_lengths"][-1] += extra


def set_task_id(number, row):
    """Another task in row 1."""
    if number == 1:
        row["task_id"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("input_ids", 3, 60_000), "row 1 has ids above "),
        (edit("loss_mask", 3, 2), "row 1 has a loss_mask with other values than 0 and 1"),
        (edit("loss_mask", 0, 1), "row 1 has a segment whose first token is supervised"),
        (edit("segment_lengths", 0, 1), "row 1 has segment_lengths that do not sum to its tokens"),
        (edit("segment_lengths", 0, 0), "row 1 has an empty segment"),
        (drop_last("loss_mask"), "row 0 has a loss_mask of another length than input_ids (as have "),
        (lengthen, f"row 1 has more than {LIMIT} tokens"),
        (set_task_id, "row 1 has another task_id than 0"),
    ],
)
def test_rows_that_break_the_format(dataset, change, message):
    write_rows(dataset, change)
    lines = [line for line in problems(dataset) if message in line]
    assert len(lines) == 1
    assert lines[0].endswith(f", in {SHARD}, build the dataset anew")


def test_rows_are_counted_as_inspect_counts_them(dataset, monkeypatch):
    monkeypatch.setattr("mft_data.dataset.mds.SHARD_BYTES", 1_000)
    write_rows(dataset, lambda number, row: row["loss_mask"].__setitem__(3, 7) if number in (4, 5) else None)
    assert len(list((dataset / "train" / "code").glob("shard.*.mds"))) > 2
    lines = [line for line in problems(dataset) if "other values than 0 and 1" in line]
    rows = [row for row in (4, 5) if any(line.startswith(f"row {row} has") for line in lines)]
    assert rows[0] == 4
    shown = run("inspect", dataset, "--task", "code", "--row", "4", "--json").stdout
    assert orjson.loads(shown)["segments"][0]["loss_mask"][3] == 7


def test_a_wrong_dtype(dataset):
    write_rows(dataset, lambda number, row: None, ids_dtype="uint32")
    (line,) = problems(dataset)
    assert line.startswith('the columns are {"input_ids":"ndarray:uint32"')
    assert line.endswith(f"the manifest says others, in {SHARD}, build the dataset anew")


def test_several_problems_are_a_line_each(dataset):
    (dataset / SHARD).unlink()
    (dataset / "notes.txt").touch()
    (dataset / "tokenizer" / "chat_template.jinja").write_text("")
    assert [line.split(",")[0] for line in problems(dataset)] == [
        "the file is not as it was built (its sha256 differs)",
        "shard.00000.mds is missing",
        "'notes.txt' does not belong here",
    ]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_flipped_byte_goes_unnoticed(shared_copy, data):
    path = data.draw(st.sampled_from(verified_files(shared_copy)))
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(flipped)
        problems(shared_copy)
    finally:
        path.write_bytes(whole)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_that_pass_their_sums_but_make_no_sense_are_no_crash(shared_copy, data):
    """A flipped byte in a shard whose sums are made to fit, as by a faulty build; most such rows break a rule."""
    paths = [shared_copy / name for name in (SHARD, INDEX, "manifest.json")]
    whole = [path.read_bytes() for path in paths]
    flipped = bytearray(whole[0])
    position = data.draw(st.integers(0, len(flipped) - 1))
    flipped[position] ^= data.draw(st.integers(1, 255))
    try:
        paths[0].write_bytes(flipped)
        with changed_json(paths[1]) as index:
            index["shards"][0]["raw_data"]["hashes"]["sha256"] = hashlib.sha256(flipped).hexdigest()
        seal(shared_copy)
        result = CliRunner().invoke(main, ["verify", str(shared_copy)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 0 or result.stderr.startswith("Error: ")
    finally:
        for path, content in zip(paths, whole, strict=True):
            path.write_bytes(content)
    run("verify", shared_copy, "--quick")


@pytest.fixture(scope="module")
def shared_copy(built, tmp_path_factory):
    """A copy for tests that put back what they damage."""
    copy = tmp_path_factory.mktemp("shared") / "dataset"
    shutil.copytree(built, copy)
    return copy
