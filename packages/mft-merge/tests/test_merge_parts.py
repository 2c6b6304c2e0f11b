"""The parts of a merge one by one: the arithmetic, the patterns, the file format, the tokenizer's choice."""

import json
import os
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save_file

from mft_merge.files.tensor_file import FLOAT_TYPES, make_header, read_rows, read_tensor_file
from mft_merge.output.tokenizer_files import stop_token_id, tokenizer_paths, with_stop_token
from mft_merge.sources.adapter import pattern_value
from mft_merge.values import merged_values
from mft_merge.values.merged_values import add_update


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1, 1).view(torch.uint8).flatten().tolist())


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=24), st.sampled_from([torch.bfloat16, torch.float16]))
def test_a_zero_update_keeps_every_bit(words, dtype):
    weight = torch.tensor(words, dtype=torch.uint16).view(dtype)[:, None]
    left, right = torch.zeros(len(words), 3), torch.full((3, 1), -2.0)
    assert bits(add_update(weight, [(left, right, 0.5)], dtype)) == bits(weight)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 1000), st.floats(-4, 4, width=32))
def test_an_update_is_the_plain_formula_in_float64(rows, columns, rank, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    weight, left, right = (
        torch.randn(shape, generator=generator, dtype=torch.float64).float()
        for shape in ((rows, columns), (rows, rank), (rank, columns))
    )
    expected = weight.double() + scale * (left.double() @ right.double())
    merged = add_update(weight, [(left, right, scale)], torch.float32)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-5)


def test_an_update_worked_by_hand():
    weight, left, right = (
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor([[1.0], [0.0]]),
        torch.tensor([[5.0, 6.0]]),
    )
    assert add_update(weight, [(left, right, 2.0)], torch.float32).tolist() == [[11.0, 14.0], [3.0, 4.0]]


@given(
    st.dictionaries(
        st.sampled_from(
            ["proj", "q_proj", "attn.q_proj", r"layers\.\d+\.attn.*", "^model.layers.0.attn.q_proj", "layers.1"]
        ),
        st.integers(1, 9),
    ),
    st.sampled_from(["model.layers.0.attn.q_proj", "model.layers.1.mlp.up_proj", "q_proj", "lm_head"]),
)
def test_patterns_match_as_in_peft(patterns, module):
    from peft.utils.other import get_pattern_key

    assert pattern_value(patterns, module, 42) == patterns.get(get_pattern_key(patterns.keys(), module), 42)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(FLOAT_TYPES)), st.lists(st.integers(0, 3), max_size=3)),
        max_size=5,
    )
)
def test_headers_are_read_back_by_safetensors(layout):
    values = {
        name: torch.arange(torch.Size(shape).numel()).reshape(shape).to(getattr(torch, FLOAT_TYPES[dtype]))
        for name, (dtype, shape) in layout.items()
    }
    entries = [(name, layout[name][0], tuple(layout[name][1]), values[name].nbytes) for name in layout]
    header = make_header(entries, {"format": "pt"})
    loaded = load(struct.pack("<Q", len(header)) + header + b"".join(map(bits, values.values())))
    assert loaded.keys() == values.keys()
    assert all(torch.equal(loaded[name], values[name]) for name in values)
    assert (8 + len(header)) % 8 == 0


def test_rows_are_read_at_their_place(tmp_path):
    tensors = {"a": torch.arange(12.0).reshape(4, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    stored = read_tensor_file(tmp_path / "x.safetensors")
    assert stored.metadata == {"format": "pt"}
    assert torch.equal(read_rows(stored.tensors["a"], 1, 3), tensors["a"][1:3])
    assert torch.equal(read_rows(stored.tensors["b"], 0, 5), tensors["b"])
    assert read_rows(stored.tensors["a"], 2, 2).shape == (0, 3)


@pytest.mark.slow
def test_a_tensor_of_more_bytes_than_one_read_gives_is_read_whole(tmp_path):
    """Linux reads at most 2 GiB less a page at a time; the file is a hole but for its last value."""
    rows = (1 << 20) + 1
    header = make_header([("a", "BF16", (rows, 1024), rows * 2048)], {})
    with (tmp_path / "x.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.seek(rows * 2048 - 2, os.SEEK_CUR)
        stream.write(bits(torch.ones(1, dtype=torch.bfloat16)))
    stored = read_tensor_file(tmp_path / "x.safetensors").tensors["a"]
    assert read_rows(stored, 0, rows)[-1, -2:].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"use_dora": True, "target_modules": ["embed_tokens", "down_proj"]}),
        ("gpt2", {"target_modules": ["c_attn"]}),
    ],
)
def test_tiles_of_rows_give_the_same_model(
    kind, options, base_dir, make_adapter, load, run_merge, tmp_path, monkeypatch
):
    adapter = make_adapter(base_dir(kind), tmp_path / "adapter", **options)
    assert run_merge(adapter, tmp_path / "whole").exit_code == 0
    monkeypatch.setattr(merged_values, "TILE_BYTES", 700)
    assert run_merge(adapter, tmp_path / "tiled").exit_code == 0
    whole, tiled = load(tmp_path / "whole").state_dict(), load(tmp_path / "tiled").state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(tiled[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("known", "expected"),
    [(None, 7), (7, 7), (2, [7, 2]), ([2, 3], [7, 2, 3]), ([2, 7], [2, 7]), ([], 7)],
)
def test_the_stop_token_joins_the_known_ones(known, expected):
    assert with_stop_token({"eos_token_id": known, "x": 1}, 7) == {"eos_token_id": expected, "x": 1}


def test_the_bases_tokenizer_serves_an_adapter_without_one(base_dir, make_adapter, run_merge, tmp_path):
    base = base_dir("llama")
    adapter = make_adapter(base, tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (adapter / name).unlink()
    (adapter / "chat_template.jinja").write_text("the adapter's own")
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == "the adapter's own"


def test_the_adapters_tokenizer_brings_no_template_of_the_base(tmp_path):
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    for directory in (adapter, base):
        directory.mkdir()
        (directory / "tokenizer.json").write_text("{}")
    (base / "chat_template.jinja").write_text("")
    (base / "merges.txt").write_text("")
    assert tokenizer_paths(adapter, base) == {"tokenizer.json": adapter / "tokenizer.json"}


def test_the_stop_token_of_a_slow_tokenizer_is_found(tmp_path):
    config = {"eos_token": {"content": "</s>"}, "added_tokens_decoder": {"2": {"content": "</s>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert stop_token_id(tmp_path) == 2
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert stop_token_id(tmp_path) is None


def test_help_names_the_options_and_version_the_package(run_merge):
    assert {"--base", "--dtype", "--overwrite"} <= set(re.findall(r"--\w+", run_merge("merge", "--help").stdout))
    assert run_merge("--version").stdout.startswith("mft-merge, version ")
    assert run_merge("only-one").exit_code == 2
    wrong = run_merge("a", "b", "--max-shard-size", "much")
    assert wrong.exit_code == 2
    assert "'much' is no size" in wrong.stderr


def test_the_documented_tree_is_what_a_merge_writes(base_dir, make_adapter, run_merge, tmp_path):
    """FORMAT.md lists every file that a sharded and an unsharded merge write together."""
    document = (Path(__file__).parents[1] / "FORMAT.md").read_text("utf-8")
    tree = re.search(r"```text\n(.*?)```", document, re.DOTALL).group(1)
    documented = {line.split()[0] for line in tree.splitlines()[1:]}
    written = set()
    for name, size in (("one", "5GB"), ("many", "30KB")):
        adapter = make_adapter(base_dir("llama", shard_size=size), tmp_path / f"adapter-{name}")
        assert run_merge(adapter, tmp_path / name).exit_code == 0
        written |= {re.sub(r"-\d{5}-of-\d{5}", "-0000K-of-0000N", path.name) for path in (tmp_path / name).iterdir()}
    assert written == documented
