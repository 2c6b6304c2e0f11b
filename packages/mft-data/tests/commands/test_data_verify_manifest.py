"""The verify command: manifests that disagree with the other files or with themselves."""

import orjson
import pytest

LIMIT = 64
SHARD = "train/code/shard.00000.mds"
INDEX = "train/code/index.json"


@pytest.mark.parametrize("name", ["conversations", "rows", "tokens", "supervised_tokens"])
def test_a_manifest_that_disagrees_with_the_rows(dataset, name, helpers):
    with helpers.changed_manifest(dataset) as manifest:
        counts = manifest["tasks"][0]["splits"]["train"]
        counts[name] += 1
        if name == "conversations":
            manifest["tasks"][0]["conversations"]["read"] += 1
    assert helpers.problems(dataset) == [
        f"the shards hold {counts[name] - 1} {name.replace('_', ' ')}, the manifest says {counts[name]}, "
        "in train/code, build the dataset anew"
    ]
    if name == "rows":
        assert len(helpers.problems(dataset, "--quick")) == 1
    else:
        helpers.run("verify", dataset, "--quick")


@pytest.mark.parametrize("mode", ["drop", "report"])
def test_contaminated_conversations_are_missing_only_where_they_were_dropped(dataset, mode, helpers):
    with helpers.changed_manifest(dataset) as manifest:
        manifest["contaminated"] = mode
        manifest["tasks"][0]["conversations"]["contaminated"] = 5
        manifest["tasks"][0]["conversations"]["read"] += 5 if mode == "drop" else 0
    helpers.run("verify", dataset)
    with helpers.changed_manifest(dataset) as manifest:
        manifest["contaminated"] = {"drop": "report", "report": "drop"}[mode]
    assert len(helpers.problems(dataset)) == 1


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
        (("tasks", 0, "conversations", "rejected"), 2, '1 reject of task "code" is listed, the manifest says 2'),
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
def test_a_manifest_that_disagrees_with_other_files(dataset, path, value, message, helpers):
    with helpers.changed_manifest(dataset) as manifest:
        set_field(manifest, path, value)
    assert any(message in line for line in helpers.problems(dataset))


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
def test_a_field_that_only_the_manifest_knows_is_protected(dataset, path, value, helpers):
    manifest = orjson.loads((dataset / "manifest.json").read_bytes())
    set_field(manifest, path, value)
    (dataset / "manifest.json").write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    assert helpers.problems(dataset) == [
        "the manifest was changed after the build, in manifest.json, build the dataset anew"
    ]
