"""Which template and which stop token a build gets."""

import pickle
from pathlib import Path

import click
import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from mft_data.cli import main
from mft_data.encoding.choose_template import choose_template
from mft_data.encoding.encoder import make_encoder
from mft_data.encoding.tokenizer import load_tokenizer, tokenizer_config
from mft_data.errors import DataError
from mft_data.reading.conversation import Turn

TEMPLATES_DIR = Path(__file__).parent / "templates"
CHATML = (TEMPLATES_DIR / "chatml.jinja").read_text(encoding="utf-8")
ZEPHYR = (TEMPLATES_DIR / "zephyr.jinja").read_text(encoding="utf-8")
QUESTION, ANSWER = Turn("human", "Add 1 and 2.", False), Turn("bot", "3", True)
TWO_ROUNDS = (QUESTION, ANSWER, QUESTION, Turn("bot", "still 3", True))


def as_messages(turns):
    """The turns as a client sends them."""
    roles = {"human": "user", "bot": "assistant"}
    return [{"role": roles.get(turn.role, turn.role), "content": turn.content} for turn in turns]


def span_borders(mask):
    """Where the runs of supervised ids begin and end."""
    borders = np.flatnonzero(np.diff([0, *mask, 0])).tolist()
    return list(zip(borders[::2], borders[1::2], strict=True))


def test_another_eos_token_than_the_stop_token_ends_documents_only(families, chosen, encode):
    template, tokenizer = chosen(families["byte_level"], CHATML, eos_token="<|endoftext|>")
    assert (template.stop, template.eos, tokenizer.eos_token) == ("<|im_end|>", "<|endoftext|>", "<|endoftext|>")
    encoder = make_encoder(tokenizer_config(tokenizer), template)
    ids, mask = encode(encoder, TWO_ROUNDS)
    stops = [ids[end - 1] for _, end in span_borders(mask)]
    assert stops == [tokenizer.convert_tokens_to_ids("<|im_end|>")] * 2
    assert encode(encoder, (Turn("text", "x", True),))[0][-1] == tokenizer.eos_token_id


def test_an_added_token_that_is_not_special_can_be_made_the_stop_token(families, chosen):
    source = CHATML.replace("<|im_end|>", "<think>")
    with pytest.raises(DataError, match=r"end it with one, or make .* the stop token by --eos-token"):
        chosen(families["added_beyond_vocab"], source)
    template, tokenizer = chosen(families["added_beyond_vocab"], source, eos_token="<think>")
    assert template.stop == tokenizer.eos_token == "<think>"


def test_a_template_that_writes_eos_keeps_the_one_asked_for(families, chosen):
    template, tokenizer = chosen(families["byte_level"], ZEPHYR, eos_token="<|endoftext|>")
    assert template.stop == tokenizer.eos_token == "<|endoftext|>"


def test_the_template_of_a_file_is_named_after_it(families, tmp_path, encode):
    path = tmp_path / "chatml.jinja"
    path.write_bytes(CHATML.replace("\n", "\r\n").encode())
    tokenizer = load_tokenizer(families["byte_level"].tokenizer_dir, None)
    template = choose_template(str(path), tokenizer, {}, None)
    assert (template.name, template.jinja()) == ("chatml.jinja", CHATML)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"not UTF-8 .*chatml.jinja"):
        choose_template(str(path), tokenizer, {}, None)


def test_a_tokenizer_without_one_chat_template_is_refused(families):
    tokenizer = load_tokenizer(families["byte_level"].tokenizer_dir, None)
    with pytest.raises(DataError, match=r"no chat template, in .*byte_level.*, give --template mft or a FILE.jinja"):
        choose_template("tokenizer", tokenizer, {}, None)
    tokenizer.chat_template = {"tool_use": CHATML, "rag": CHATML}
    with pytest.raises(DataError, match="several chat templates and no default one"):
        choose_template("tokenizer", tokenizer, {}, None)
    tokenizer.chat_template = {"tool_use": CHATML, "default": ZEPHYR}
    assert choose_template("tokenizer", tokenizer, {}, None).jinja() == ZEPHYR


def test_a_dataset_built_with_a_template_stops_and_renders_as_it_does(families, write_task, tmp_path):
    load_tokenizer(families["byte_level"].tokenizer_dir, "<|endoftext|>").save_pretrained(tmp_path / "base")
    (tmp_path / "chatml.jinja").write_text(CHATML, encoding="utf-8")
    task = write_task("sums", [{"messages": as_messages((QUESTION, Turn("bot", f"{n}", True)))} for n in range(9)])
    options = ("--tokenizer", tmp_path / "base", "--template", tmp_path / "chatml.jinja")
    result = CliRunner().invoke(main, ["build", *map(str, (task, tmp_path / "out", *options))])
    assert result.exit_code == 0, result.output
    manifest = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert (manifest["template"], manifest["eos_token"]) == ("chatml.jinja", "<|im_end|>")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.apply_chat_template(as_messages([QUESTION]), tokenize=False).endswith("1 and 2.<|im_end|>\n")


def test_role_markers_belong_to_the_mft_template(families):
    tokenizer = load_tokenizer(families["byte_level"].tokenizer_dir, None)
    assert choose_template("mft", tokenizer, {"bot": "B:"}, None).markers["bot"] == "B:"
    with pytest.raises(click.UsageError, match="--role-marker goes with --template mft"):
        choose_template("tokenizer", tokenizer, {"bot": "B:"}, None)


def test_a_template_goes_to_other_processes(families, chosen):
    template, _ = chosen(families["byte_level"], CHATML)
    there = pickle.loads(pickle.dumps(template))
    assert there == template
    assert there.stretches(TWO_ROUNDS) == template.stretches(TWO_ROUNDS)
