"""Fill-in-the-middle: the pieces are the source, the middle and its stop are learned, sentinels are the family's."""

import sysconfig
from itertools import islice
from pathlib import Path
from random import Random

import orjson
import pytest
from click.testing import CliRunner
from streaming import LocalDataset
from tokenizers import AddedToken

from mft_data.cli import main
from mft_data.encoding.fim import FAMILIES, SPANS, FimRenderer
from mft_data.encoding.tokenizer import load_tokenizer
from mft_data.errors import RecordError
from mft_data.reading.conversation import Turn

NUM_FILES = 1000


def standard_library():
    """The text of real files: this Python's own standard library."""
    folder = Path(sysconfig.get_path("stdlib"))
    own, others = [], []
    for path in sorted(folder.rglob("*.py")):
        (others if "site-packages" in path.parts else own).append(path)
    # Some distributions leave parts of it out.
    for path in (*own, *others):
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if 3 <= len(text) < 15_000:
            yield text


@pytest.fixture(scope="module")
def files():
    found = list(islice(standard_library(), NUM_FILES))
    assert len(found) == NUM_FILES
    return found


def reassembled(stretches):
    """The document that a rendered prompt and middle were made of, and their order."""
    prompt, answer = stretches
    assert (prompt.is_supervised, answer.is_supervised) == (False, True)
    assert answer.text.endswith("\ue003")
    middle = answer.text[:-1]
    assert prompt.text[0] == "\ue000"
    first, rest = prompt.text[1:].split("\ue001")
    if rest.endswith("\ue002"):
        return "psm", first + middle + rest[:-1]
    assert first == ""
    suffix, prefix = rest.split("\ue002")
    return "spm", prefix + middle + suffix


@pytest.mark.parametrize("spans", SPANS)
def test_the_pieces_put_together_are_the_source_for_a_thousand_files(files, spans):
    renderer = FimRenderer("\ue000", "\ue001", "\ue002", "\ue003", (), 0.3, spans)
    orders = []
    for text in files:
        try:
            stretches = renderer.stretches((Turn("text", text, True),))
        except RecordError:  # no code of this Python, or no statement in it
            assert spans == "syntax"
            continue
        order, source = reassembled(stretches)
        assert source == text
        orders.append(order)
        assert stretches == renderer.stretches((Turn("text", text, True),))
    assert len(orders) > NUM_FILES * 0.9
    assert orders.count("spm") / len(orders) == pytest.approx(0.3, abs=0.06)


def test_a_syntax_span_is_a_statement_or_an_expression():
    text = "é = 'ü'\r\nif é:\r\n    print(é + 'x')\r\n"
    found = {SPANS["syntax"](text, Random(seed)).middle for seed in range(200)}
    assert found == {
        "é = 'ü'", "é", "'ü'", "if é:\r\n    print(é + 'x')", "print(é + 'x')", "print", "é + 'x'", "'x'",
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_build_has_the_ids_of_the_family(families, tmp_path, family):
    prefix, suffix, middle, stop = FAMILIES[family]
    tokenizer = load_tokenizer(families["byte_level"].tokenizer_dir, None)
    is_special = family != "qwen"  # Qwen's are added tokens that are not marked
    tokens = [token for token in (prefix, suffix, middle, stop) if token]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=is_special) for token in tokens])
    tokenizer.save_pretrained(tmp_path / "base")
    texts = [f"def f{n}(a):\n    return a + {n}  # <|im_end|>\n" for n in range(30)]
    (tmp_path / "a.jsonl").write_bytes(b"".join(orjson.dumps({"content": text}) + b"\n" for text in texts))
    task = f"{{paths: {tmp_path / 'a.jsonl'}, fields: {{content: text}}, kind: fim, validation: 0}}"
    (tmp_path / "tasks.yaml").write_text(f"tasks:\n  t: {task}\n")
    arguments = ["build", str(tmp_path / "tasks.yaml"), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "base")]
    result = CliRunner().invoke(main, [*arguments, "--packing", "none"])
    assert result.exit_code == 0, result.output
    rows = LocalDataset(str(tmp_path / "out" / "train" / "t"))
    ids = {
        name: tokenizer.convert_tokens_to_ids(token or tokenizer.eos_token)
        for name, token in zip("psme", FAMILIES[family], strict=True)
    }
    found = []
    for row in (rows[position] for position in range(len(rows))):
        tokens, mask = row["input_ids"].tolist(), row["loss_mask"].tolist()
        start = mask.index(1)
        assert mask == [0] * start + [1] * (len(mask) - start)
        assert tokens[-1] == ids["e"]
        assert [token for token in tokens if token in ids.values()] == [ids[name] for name in "psme"]
        p, s, m = (tokens.index(ids[name]) for name in "psm")
        parts = [tokens[p + 1 : s], tokens[start:-1], tokens[s + 1 : m]]
        if s == p + 1 and m < start - 1:  # SPM
            parts = [tokens[m + 1 : start], tokens[start:-1], tokens[s + 1 : m]]
        found.append("".join(tokenizer.decode(part) for part in parts))
    assert sorted(found) == sorted(texts)
    if not is_special:
        (tmp_path / "a.jsonl").write_bytes(orjson.dumps({"content": "a " + prefix}) + b"\n")
        error = CliRunner().invoke(main, [*arguments, "--overwrite"]).stderr
        assert f'the text holds "{prefix}", which this tokenizer makes a sentinel of' in error


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ("kind: fim", "the tokenizer has no family's sentinels for filling in"),
        ("kind: fim, fim: {sentinels: qwen}", "has not all of the sentinels <|fim_prefix|>"),
        ("kind: fim, fim: {spm: 2}", "spm is a share from 0 to 1"),
        ("kind: fim, fim: {span: syntax}", "write `sentinels:`, `spm:` and `spans:` under it"),
        ("fim: {spm: 1}", "add `kind: fim`"),
        ("kind: fim, fim: {sentinels: [<|im_start|>, <|im_end|>, <repo_name>]}", "only text records"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(families, tmp_path, task, error):
    record = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "a.jsonl").write_bytes(orjson.dumps(record) + b"\n")
    (tmp_path / "tasks.yaml").write_text(f"tasks:\n  t: {{paths: {tmp_path / 'a.jsonl'}, {task}}}\n")
    arguments = ["build", str(tmp_path / "tasks.yaml"), str(tmp_path / "out"), "--tokenizer"]
    result = CliRunner().invoke(main, [*arguments, str(families["byte_level"].tokenizer_dir)])
    assert result.exit_code == 1
    assert error in result.stderr
    assert result.stderr.count("\n") == 1
