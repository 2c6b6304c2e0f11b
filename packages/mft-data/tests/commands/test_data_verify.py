"""The verify command: a fresh dataset passes, and no damaged, missing or extra file does."""

import hashlib

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_data.cli import main

LIMIT = 64
SHARD = "train/code/shard.00000.mds"
INDEX = "train/code/index.json"


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_a_fresh_dataset_passes(built, options, helpers):
    result = helpers.run("verify", built, *options)
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


def test_one_of_a_kind_is_no_plural(write_task, tokenizer_dir, tmp_path, helpers):
    source = write_task("lone", [{"text": "x"}])
    options = ("--tokenizer", tokenizer_dir, "--template", "mftcoder", "--validation", "0")
    helpers.run("build", source, tmp_path / "dataset", *options)
    held = "1 task, 1 conversation, 1 row, 3 tokens, 2 supervised tokens"
    assert helpers.run("verify", tmp_path / "dataset").stderr == f"every byte is as built: {held}\n"


@pytest.mark.parametrize("name", ["llama_metaspace", "added_beyond_vocab"])
def test_a_dataset_of_another_tokenizer_passes(families, name, tmp_path, helpers):
    helpers.run("verify", helpers.build(tmp_path, families[name].tokenizer_dir))


def test_a_flipped_byte_in_a_shard(dataset, helpers):
    content = bytearray((dataset / SHARD).read_bytes())
    content[len(content) // 2] ^= 1
    (dataset / SHARD).write_bytes(content)
    assert helpers.problems(dataset) == [
        f"the shard is not as it was built (its sha256 differs), in {SHARD}, copy it again or build the dataset anew"
    ]
    helpers.run("verify", dataset, "--quick")


@pytest.mark.parametrize("options", [(), ("--quick",)])
def test_a_truncated_shard(dataset, options, helpers):
    content = (dataset / SHARD).read_bytes()
    (dataset / SHARD).write_bytes(content[:-1])
    assert helpers.problems(dataset, *options) == [
        f"the shard has {len(content) - 1} bytes, its index says {len(content)}, in {SHARD}, "
        "copy it again or build the dataset anew"
    ]


@pytest.mark.parametrize("options", [(), ("--quick",)])
@pytest.mark.parametrize(
    "name", [SHARD, INDEX, "rejects.jsonl", "tokenizer/tokenizer.json", "tokenizer/chat_template.jinja"]
)
def test_a_missing_file(dataset, name, options, helpers):
    (dataset / name).unlink()
    folder, _, file_name = name.rpartition("/")
    assert helpers.problems(dataset, *options) == [
        f"{file_name} is missing, in {folder}, copy it again or build the dataset anew"
    ]


def test_a_missing_manifest(dataset, helpers):
    (dataset / "manifest.json").unlink()
    (line,) = helpers.problems(dataset)
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
def test_an_extra_file(dataset, name, options, helpers):
    (dataset / name).parent.mkdir(parents=True, exist_ok=True)
    (dataset / name).write_text("{}")
    folder, _, file_name = name.rpartition("/")
    assert helpers.problems(dataset, *options) == [f"'{file_name}' does not belong here, in {folder}, remove it"]


def test_an_index_that_was_changed(dataset, helpers):
    (dataset / INDEX).write_bytes((dataset / INDEX).read_bytes() + b"\n")
    assert helpers.problems(dataset) == [
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
def test_an_index_that_disagrees_with_its_shards(dataset, path, value, message, helpers):
    with helpers.changed_json(dataset / INDEX) as index:
        field = index["shards"][0]
        for key in path[:-1]:
            field = field[key]
        field[path[-1]] = value
    helpers.seal(dataset)
    (line,) = helpers.problems(dataset)
    assert message in line
    assert f", in {SHARD}, " in line


@pytest.mark.parametrize(
    "index", [{}, [], {"shards": [{}]}, {"shards": 3}, "../x", "/etc/passwd", "a\nb", "shard.00000.mds.zstd"]
)
def test_an_index_that_makes_no_sense(dataset, index, helpers):
    with helpers.changed_json(dataset / INDEX) as content:
        if isinstance(index, str):
            content["shards"][0]["raw_data"]["basename"] = index
        if index == "shard.00000.mds.zstd":
            content["shards"][0]["zip_data"] = content["shards"][0]["raw_data"]
    if not isinstance(index, str):
        (dataset / INDEX).write_bytes(orjson.dumps(index))
    helpers.seal(dataset)
    assert helpers.problems(dataset) == [f"the index is damaged, in {INDEX}, build the dataset anew"]


def test_damaged_tokenizer_files(dataset, helpers):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        with (dataset / "tokenizer" / name).open("ab") as handle:
            handle.write(b" ")
    lines = helpers.problems(dataset)
    assert sorted(line.split(", in ")[1].split(",")[0] for line in lines) == [
        "tokenizer/chat_template.jinja",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ]


def test_a_tokenizer_that_is_none(dataset, helpers):
    path = dataset / "tokenizer" / "tokenizer.json"
    path.write_bytes(b"{}")
    with helpers.changed_manifest(dataset) as manifest:
        manifest["tokenizer_files"]["tokenizer.json"] = hashlib.sha256(b"{}").hexdigest()
    (line,) = helpers.problems(dataset)
    assert line.startswith("the tokenizer cannot be read (")


@pytest.mark.parametrize("content", [b"{", b"[]\n", b'{"task": []}\n', b"{}\n"])
def test_rejects_that_are_none(dataset, content, helpers):
    (dataset / "rejects.jsonl").write_bytes(content)
    with helpers.changed_manifest(dataset) as manifest:
        manifest["rejects_sha256"] = hashlib.sha256(content).hexdigest()
    assert helpers.problems(dataset) == ["a line is not a reject, in rejects.jsonl, build the dataset anew"]


def test_several_problems_are_a_line_each(dataset, helpers):
    (dataset / SHARD).unlink()
    (dataset / "notes.txt").touch()
    (dataset / "tokenizer" / "chat_template.jinja").write_text("")
    assert [line.split(",")[0] for line in helpers.problems(dataset)] == [
        "the file is not as it was built (its sha256 differs)",
        "shard.00000.mds is missing",
        "'notes.txt' does not belong here",
    ]


@settings(max_examples=150)
@given(st.data())
def test_no_flipped_byte_goes_unnoticed(shared_copy, helpers, data):
    path = data.draw(st.sampled_from(helpers.verified_files(shared_copy)))
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[position] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(flipped)
        helpers.problems(shared_copy)
    finally:
        path.write_bytes(whole)


@settings(max_examples=60)
@given(st.data())
def test_rows_that_pass_their_sums_but_make_no_sense_are_no_crash(shared_copy, helpers, data):
    """A flipped byte in a shard whose sums are made to fit, as by a faulty build; most such rows break a rule."""
    paths = [shared_copy / name for name in (SHARD, INDEX, "manifest.json")]
    whole = [path.read_bytes() for path in paths]
    flipped = bytearray(whole[0])
    position = data.draw(st.integers(0, len(flipped) - 1))
    flipped[position] ^= data.draw(st.integers(1, 255))
    try:
        paths[0].write_bytes(flipped)
        with helpers.changed_json(paths[1]) as index:
            index["shards"][0]["raw_data"]["hashes"]["sha256"] = hashlib.sha256(flipped).hexdigest()
        helpers.seal(shared_copy)
        result = CliRunner().invoke(main, ["verify", str(shared_copy)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 0 or result.stderr.startswith("Error: ")
    finally:
        for path, content in zip(paths, whole, strict=True):
            path.write_bytes(content)
    helpers.run("verify", shared_copy, "--quick")
