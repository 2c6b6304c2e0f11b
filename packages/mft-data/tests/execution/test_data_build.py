"""The build command on good input: what it writes, and that it writes the same each time."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming import LocalDataset
from transformers import AutoTokenizer

from mft_data.cli import main
from mft_data.dataset.fingerprints import manifest_bytes
from mft_data.dataset.mds import ShardWriter, mds_columns, read_row
from mft_data.encoding.encoder import EncodedBatch
from mft_data.rows.rows import encode_rows

FORMAT = Path(__file__).parents[2] / "FORMAT.md"


def conversation(number, length=1):
    """A record whose texts tell which one it is."""
    rounds = [{"role": "human", "content": f"add {number}"}, {"role": "bot", "content": f"sum {number} " * length}]
    return {"id": number, "chat_rounds": rounds}


def run(*arguments, exit_code=0):
    """The result of a command that has to end with `exit_code`."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def tree(folder):
    """Name and digest of every file in a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(dataset, split, task):
    """The rows of a stream, as the streaming library reads them."""
    rows = LocalDataset(str(dataset / split / task))
    return [rows[position] for position in range(len(rows))]


def decoded_conversations(dataset, split, task):
    """The text of every segment of every row."""
    tokenizer = AutoTokenizer.from_pretrained(dataset / "tokenizer")
    return [
        tokenizer.decode(segment)
        for row in rows_of(dataset, split, task)
        for segment in np.split(row["input_ids"], np.cumsum(row["segment_lengths"])[:-1])
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory, tokenizer_dir):
    """A dataset of two tasks, `code` in two files and `sql` in one, with one record refused."""
    folder = tmp_path_factory.mktemp("built")
    for task, name, numbers in (("code", "a", range(40)), ("code", "b", range(40, 60)), ("sql", "c", range(5))):
        (folder / task).mkdir(exist_ok=True)
        lines = [orjson.dumps(conversation(f"{task}{number}", 1 + number % 7)) for number in numbers]
        (folder / task / f"{name}.jsonl").write_bytes(b"\n".join(lines))
    with (folder / "sql" / "c.jsonl").open("ab") as handle:
        handle.write(b'\n{"chat_rounds": []}\n')
    options = ("--tokenizer", tokenizer_dir, "--seq-length", "256", "--validation", "0.2", "--max-rejects", "1")
    result = run("build", folder / "code", f"db={folder / 'sql'}", folder / "out", *options)
    assert result.stdout == f"{folder / 'out'}\n"
    return folder, options


def test_every_conversation_is_in_one_row_of_one_split(built):
    folder, _ = built
    template = "<s>human\nadd {0}\n<s>bot\n{1}<|im_end|>\n"
    for task, prefix, count in (("code", "code", 60), ("db", "sql", 5)):
        expected = [template.format(f"{prefix}{n}", f"sum {prefix}{n} " * (1 + n % 7)) for n in range(count)]
        train, validation = (decoded_conversations(folder / "out", split, task) for split in ("train", "validation"))
        assert sorted(train + validation) == sorted(expected)
        assert train
        assert validation


def test_rows_keep_to_the_format(built):
    folder, _ = built
    manifest = orjson.loads((folder / "out" / "manifest.json").read_bytes())
    eos = manifest["eos_token_id"]
    for entry in manifest["tasks"]:
        for split, counts in entry["splits"].items():
            rows = rows_of(folder / "out", split, entry["name"])
            for row in rows:
                assert row["task_id"] == entry["task_id"]
                assert row["input_ids"].dtype == np.uint16
                assert row["loss_mask"].dtype == np.uint8
                assert row["segment_lengths"].dtype == np.uint32
                assert 0 < len(row["input_ids"]) == len(row["loss_mask"]) == row["segment_lengths"].sum() <= 256
                assert row["input_ids"].max() <= manifest["max_token_id"]
                # A newline follows EOS.
                assert (row["input_ids"][np.cumsum(row["segment_lengths"]) - 2] == eos).all()
            index = folder / "out" / split / entry["name"] / "index.json"
            assert counts == {
                "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest(),
                "conversations": sum(len(row["segment_lengths"]) for row in rows),
                "rows": len(rows),
                "tokens": sum(len(row["input_ids"]) for row in rows),
                "supervised_tokens": sum(int(row["loss_mask"].sum()) for row in rows),
            }


def shape(value):
    """The keys and JSON types of a value; lists by their first element."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    return [shape(entry) for entry in value[:1]] if isinstance(value, list) else type(value)


def test_the_manifest_has_the_fields_of_the_documented_example(built):
    folder, _ = built
    example = re.search(r"```json\n(.*?)```", FORMAT.read_text(), re.DOTALL)[1]
    manifest = orjson.loads((folder / "out" / "manifest.json").read_bytes())
    documented = orjson.loads(example)
    assert manifest_bytes(documented) == example.encode(), "its own sum is another"
    # The example was built with --decontaminate, which this dataset was not.
    assert shape(manifest | {"decontaminated": documented["decontaminated"]}) == shape(documented)
    assert manifest["format_version"] == "1"
    names = set(re.findall(r'"(\w+)":', example))
    assert {name for name in names if f"`{name}`" not in FORMAT.read_text()} == set()


def test_the_manifest_tells_what_was_read(built, tokenizer_dir):
    folder, _ = built
    manifest = orjson.loads((folder / "out" / "manifest.json").read_bytes())
    code, db = manifest["tasks"]
    assert (code["name"], code["task_id"], db["name"], db["task_id"]) == ("code", 0, "db", 1)
    assert [source["file"] for source in code["sources"]] == ["a.jsonl", "b.jsonl"]
    content = (folder / "sql" / "c.jsonl").read_bytes()
    assert db["sources"] == [
        {
            "file": "c.jsonl",
            "split": None,
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    ]
    assert {name: count for name, count in db["conversations"].items() if count} == {"read": 6, "rejected": 1}
    (reject,) = map(orjson.loads, (folder / "out" / "rejects.jsonl").read_bytes().splitlines())
    assert reject == {"task": "db", "file": "c.jsonl", "line": 6, "reason": 'field "chat_rounds" is empty'}
    template = (folder / "out" / "tokenizer" / "chat_template.jinja").read_bytes()
    assert manifest["template_sha256"] == hashlib.sha256(template).hexdigest()
    saved = orjson.loads((folder / "out" / "tokenizer" / "tokenizer.json").read_bytes())
    canonical = orjson.dumps(saved, option=orjson.OPT_SORT_KEYS)
    assert manifest["tokenizer_sha256"] == hashlib.sha256(canonical).hexdigest()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    assert manifest["vocab_size"] == len(tokenizer) == manifest["max_token_id"] + 1
    assert manifest["eos_token_id"] == tokenizer.eos_token_id


def test_the_same_inputs_give_the_same_bytes_from_another_place(built, tmp_path, monkeypatch):
    folder, options = built
    monkeypatch.chdir(folder)
    run("build", "code/", "db=sql", tmp_path / "again", *options)
    assert tree(tmp_path / "again") == tree(folder / "out")
    run("build", "code/", "db=sql", tmp_path / "again", *options, "--seed", "1", "--overwrite")
    assert tree(tmp_path / "again") != tree(folder / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_the_seed_moves_no_conversation_between_the_splits(built, tmp_path):
    folder, options = built
    run("build", folder / "code", tmp_path / "out", *options, "--seed", "7")
    before, after = (decoded_conversations(root, "validation", "code") for root in (folder / "out", tmp_path / "out"))
    assert sorted(before) == sorted(after)


def test_the_saved_tokenizer_renders_and_encodes_the_prompt_of_each_row(built):
    folder, _ = built
    tokenizer = AutoTokenizer.from_pretrained(folder / "out" / "tokenizer")
    for row in rows_of(folder / "out", "train", "db"):
        borders = np.cumsum(row["segment_lengths"])[:-1]
        for ids, mask in zip(np.split(row["input_ids"], borders), np.split(row["loss_mask"], borders), strict=True):
            human = tokenizer.decode(ids).split("\n")[1]
            messages = [{"role": "user", "content": human}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert ids[: mask.argmax()].tolist() == prompt


def test_an_eos_token_of_choice_travels_with_the_tokenizer(write_task, tmp_path, tokenizer_dir):
    source = write_task("t", [conversation(number) for number in range(3)])
    markers = ("--role-marker", r"user=<|im_start|>\t\\", "--role-marker", "bot=B:")
    options = ("--tokenizer", tokenizer_dir, "--eos-token", "<|endoftext|>", "--validation", "0", *markers)
    run("build", source, tmp_path / "out", *options)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert tokenizer.eos_token == "<|endoftext|>"
    texts = decoded_conversations(tmp_path / "out", "train", "t")
    assert "<|im_start|>\t\\add 1\nB:sum 1 <|endoftext|>\n" in texts
    messages = [{"role": "human", "content": "add 1"}, {"role": "bot", "content": "sum 1 "}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) in texts
    assert not (tmp_path / "out" / "validation").exists()


def test_the_saved_tokenizer_keeps_its_settings_and_not_how_it_was_loaded(built, families):
    folder, _ = built
    config = json.loads((folder / "out" / "tokenizer" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == families["byte_level"].tokenizer.model_max_length
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    # That class of transformers 4 would hand out token_type_ids otherwise.
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert {"is_local", "local_files_only", "name_or_path"}.isdisjoint(config)
    assert AutoTokenizer.from_pretrained(folder / "out" / "tokenizer").get_vocab() == (
        families["byte_level"].tokenizer.get_vocab()
    )


def test_a_tokenizer_that_is_rebuilt_at_every_load_encodes_like_its_saved_copy(families, write_task, tmp_path):
    base = shutil.copytree(families["llama_prepend"].tokenizer_dir, tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "LlamaTokenizer", "legacy": True, "extra_special_tokens": ["<unk>"]}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    run("build", write_task("t", [conversation(1)]), tmp_path / "out", "--tokenizer", base)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    (row,) = rows_of(tmp_path / "out", "train", "t")
    messages = [{"role": "user", "content": "add 1"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert row["input_ids"][: row["loss_mask"].argmax()].tolist() == prompt
    again = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert "<unk>" in again.all_special_tokens


@settings(max_examples=60)
@given(
    name=st.sampled_from(["mft", "mftcoder"]),
    markers=st.dictionaries(
        st.sampled_from(["system", "human", "bot"]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), max_size=8),
    ),
    content=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), min_size=1, max_size=8),
)
def test_jinja_renders_what_the_template_encodes(families, name, markers, content):
    from mft_data.encoding.template import OWN_TEMPLATES
    from mft_data.reading.conversation import Turn

    template = OWN_TEMPLATES[name]("<|im_end|>", markers)
    turns = (Turn("system", content, False), Turn("human", content, False), Turn("bot", content, True))
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    tokenizer = families["byte_level"].tokenizer
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template.jinja())
    assert rendered == "".join(stretch.text for stretch in template.stretches(turns))
    prompt = tokenizer.apply_chat_template(
        messages[:2], tokenize=False, add_generation_prompt=True, chat_template=template.jinja()
    )
    (answer,) = [stretch.text for stretch in template.stretches(turns) if stretch.is_supervised]
    assert answer.endswith("<|im_end|>")
    assert prompt + answer + "\n" == rendered


def test_jinja_refuses_an_unknown_role(families):
    tokenizer = families["byte_level"].tokenizer
    with pytest.raises(Exception, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_overlong_conversations_are_counted(write_task, tmp_path, tokenizer_dir, overlong):
    source = write_task("t", [conversation(1), conversation(2, 100), conversation(3)])
    options = ("--tokenizer", tokenizer_dir, "--seq-length", "64", "--validation", "0", "--overlong", overlong)
    run("build", source, tmp_path / "out", *options)
    (entry,) = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())["tasks"]
    dropped = overlong == "drop"
    assert entry["conversations"]["overlong_dropped"] == dropped
    assert entry["conversations"]["overlong_truncated"] == (not dropped)
    assert entry["splits"]["train"]["conversations"] == (2 if dropped else 3)


def test_packing_none_gives_each_conversation_a_row(write_task, tmp_path, tokenizer_dir):
    source = write_task("t", [conversation(number) for number in range(9)])
    run("build", source, tmp_path / "out", "--tokenizer", tokenizer_dir, "--packing", "none", "--validation", "0")
    assert [len(row["segment_lengths"]) for row in rows_of(tmp_path / "out", "train", "t")] == [1] * 9


def make_rows():
    """Three conversations of 3, 2 and 300 tokens."""
    ids = np.arange(305, dtype=np.uint16)
    return EncodedBatch(ids, (ids % 2).astype(np.uint8), np.array([3, 2, 300]))


def write_rows(stream_dir, dtype, encoded, rows):
    """Writes rows of task 7 as one stream."""
    writer = ShardWriter(stream_dir, mds_columns(dtype))
    for sample in encode_rows(encoded, rows, 7):
        writer.write(sample)
    writer.finish()


def test_the_bytes_of_a_stream_are_frozen(tmp_path):
    write_rows(tmp_path / "t", "uint16", make_rows(), [[2], [1, 0]])
    assert tree(tmp_path / "t") == FROZEN_STREAM


def test_single_rows_are_read_as_the_streaming_library_reads_them(tmp_path):
    for dtype in ("uint16", "uint32"):
        encoded = make_rows()
        encoded = EncodedBatch(encoded.input_ids.astype(dtype), encoded.loss_mask, encoded.lengths)
        write_rows(tmp_path / dtype, dtype, encoded, [[2], [1, 0]])
        expected = LocalDataset(str(tmp_path / dtype))
        for position in range(2):
            row = read_row(tmp_path / dtype, position)
            assert row.keys() == expected[position].keys()
            for name in row:
                np.testing.assert_array_equal(row[name], expected[position][name])


# A changed digest is a changed format: readers of older datasets need to know.
FROZEN_STREAM = {
    "index.json": "713c8233b3418eb64a15d8d690d606cad772757c1ffb83d379ae122c44d9cde7",
    "shard.00000.mds": "38040a3c439053821d721b2ed21a7042a8cc82d8b96e3f92e38209f48c534e05",
}
