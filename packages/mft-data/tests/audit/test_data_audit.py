"""What an audit finds is what was put into the records, and it is told by row; the page holds it all, by itself."""

import os
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mft_data.audit.markers import role_markers
from mft_data.audit.repeats import Repeats, repeated_prompts
from mft_data.audit.streams import Segments
from mft_data.audit.text_checks import TextChecks
from mft_data.audit.token_checks import last_positions, last_span_starts
from mft_data.cli import main

MARKERS = {"system": "<s>system\n", "user": "<s>human\n", "assistant": "<s>bot\n"}
CODE = "Here:\n```python\nprint(1)\n```\n"


def record(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tokenizer_dir):
    """A task with one of everything that an audit looks for, one without, and one of pairs."""
    root = tmp_path_factory.mktemp("audited")
    odd = [record(f"add number {number} now", f"the sum {number * 7}") for number in range(60)]
    odd += [
        record("add all of these numbers", "."),  # one token and EOS
        record("sum of the list?", "yes"),
        record("sum of the list?", "no"),
        record("is this Ã© wrong?", "it is"),
        record("is this &lt;b&gt; wrong?", "it is, too"),
        record("write some code", CODE),
        record("write a long answer", "sum " * 120),
    ]
    plain = [record(f"q {number} {number**2 % 97}", f"a{number} {number**3 % 89}") for number in range(9)]
    alike = [record(f"{number}", f"Sure, here is your answer: {number}") for number in range(30)]
    pairs = [{"prompt": f"{number} which", "chosen": f"{number} this", "rejected": "that one"} for number in range(9)]
    for name, records in (("odd", odd), ("plain", plain), ("alike", alike), ("pairs", pairs)):
        (root / name).mkdir()
        (root / name / "part.jsonl").write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in records))
    options = ("--tokenizer", tokenizer_dir, "--seq-length", "128", "--overlong", "truncate", "--validation", "0.1")
    run("build", *(root / name for name in ("odd", "plain", "alike", "pairs")), root / "out", *options)
    return root / "out"


@pytest.fixture(scope="module")
def audit(dataset):
    return orjson.loads(run("inspect", dataset, "--audit", "--json").stdout)


def texts_of(dataset, task, examples):
    """The text of each example, as `inspect --row` shows it."""
    texts = []
    for example in examples:
        options = ("--task", task, "--row", example["row"], "--split", example["split"], "--json")
        row = orjson.loads(run("inspect", dataset, *options).stdout)
        pieces = row["segments"][example["segment"] - 1]["pieces"]
        texts.append("".join(piece["text"] for piece in pieces))
    return texts


def test_the_examples_are_what_was_found(dataset, audit):
    found = {}
    looked_at = {"odd": 67, "plain": 9, "alike": 30, "pairs": 18}
    assert audit["conversations"] == audit["read_as_text"] == sum(looked_at.values())
    for name in ("little_supervised", "lost_stop_tokens", "repeated_prompts", "encodings"):
        for finding in audit[name]:
            assert finding["looked_at"] == looked_at[finding["task"]]
            key = name, finding["task"], finding["what"]
            found[key] = finding["conversations"], sorted(texts_of(dataset, finding["task"], finding["examples"]))
    begin, middle, end = "<s>human\n", "\n<s>bot\n", "<|im_end|>\n"
    cut = found.pop(("lost_stop_tokens", "odd", ""))
    assert (cut[0], len(cut[1])) == (1, 1)
    assert cut[1][0].startswith(f"{begin}write a long answer{middle}sum sum")
    assert found == {
        ("little_supervised", "odd", ""): (1, [f"{begin}add all of these numbers{middle}.{end}"]),
        ("repeated_prompts", "odd", ""): (2, [f"{begin}sum of the list?{middle}{text}{end}" for text in ("no", "yes")]),
        ("encodings", "odd", "UTF-8 read as Latin-1"): (1, [f"{begin}is this Ã© wrong?{middle}it is{end}"]),
        ("encodings", "odd", "HTML entity"): (1, [f"{begin}is this &lt;b&gt; wrong?{middle}it is, too{end}"]),
    }


def test_openings_roles_languages_and_long_tokens_are_told(dataset, audit):
    (opening,) = [finding for finding in audit["answer_openings"] if finding["task"] == "alike"]
    assert opening["conversations"] == 30
    assert opening["what"]
    assert "Sure, here is your answer".startswith(opening["what"])
    assert audit["fence_tokens"].keys() == {"odd"}
    assert audit["fence_tokens"]["odd"].keys() == {"python"}
    manifest = orjson.loads((dataset / "manifest.json").read_bytes())
    for task in manifest["tasks"]:
        characters = audit["role_characters"][task["name"]]
        assert characters.keys() == {"user", "assistant", "(template)"}
    assert audit["role_characters"]["plain"]["user"] == sum(len(f"q {number} {number**2 % 97}") for number in range(9))
    assert audit["longest_tokens"] == sorted(audit["longest_tokens"], key=lambda token: -len(token["text"]))
    longest = audit["longest_tokens"][0]
    (text,) = texts_of(dataset, longest["task"], [longest])
    assert longest["text"] in text


def test_the_audit_is_readable(dataset):
    shown = run("inspect", dataset, "--audit").stdout
    assert "the same prompt with different answers: 2 in 1 task\n  odd: 2 (" in shown
    assert max(map(len, shown.splitlines())) < 220


class Links(HTMLParser):
    """The ids of a page, what it links to, and what it would load."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.loaded, self.open = set(), [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes["id"]} if "id" in attributes else set()
        self.links += [attributes["href"]] if "href" in attributes else []
        self.loaded += [attributes["src"]] if "src" in attributes else []
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_stands_alone(dataset, tmp_path):
    path = tmp_path / "page.html"
    assert run("inspect", dataset, "--html", path).stdout == f"{path}\n"
    content = path.read_text()
    page = Links()
    page.feed(content)
    assert not page.open
    assert page.loaded == []
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "is this &amp;lt;b&amp;gt; wrong?" in content
    assert '<span class="learned">sum sum' in content
    assert sum(link.startswith("#row-") for link in page.links) >= 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
    assert "rejected" in content
    assert "<th>over limit</th>" in content
    # Where a row is named, the browser opens what hides it: the place is inside.
    assert content.count('</summary>\n<div class="at" id="row-') == content.count("<details")
    assert not re.search(r"\b1 (conversation|segment|row|task)s\b", content)
    assert '<span>0</span><i style="width:0.00%">' in content  # no bar at all


def test_a_page_that_cannot_be_written_is_one_line(dataset, tmp_path):
    error = run("inspect", dataset, "--html", tmp_path / "none" / "page.html", exit_code=1).stderr
    folder = tmp_path / "none"
    assert error == f'Error: there is no folder "{folder}" for the page, make it, or write somewhere else\n'
    assert "one at a time" in run("inspect", dataset, "--audit", "--html", tmp_path / "x", exit_code=2).stderr


def test_a_page_replaces_nothing_that_it_was_not_told_to(dataset, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("notes")
    error = run("inspect", dataset, "--html", path, exit_code=1).stderr
    assert error == f'Error: "{path}" exists, use --overwrite or another name\n'
    assert path.read_text() == "notes"
    # What looks like the page on its way is another's all the same.
    monkeypatch.setattr("secrets.token_hex", lambda _: "0")
    (tmp_path / f".page.html.{os.getpid()}").write_text("notes")
    (tmp_path / ".page.html.0").write_text("notes")
    assert "File exists" in run("inspect", dataset, "--html", path, "--overwrite", exit_code=1).stderr
    assert path.read_text() == "notes"
    monkeypatch.undo()
    run("inspect", dataset, "--html", path, "--overwrite")
    assert "<html" in path.read_text()
    beside = [entry.read_text() for entry in tmp_path.iterdir() if entry != path]
    assert beside == ["notes", "notes"]


def test_a_damaged_dataset_is_one_line(dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    shard = copy / "train" / "plain" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-5])
    for option in ("--audit", "--html"):
        target = [tmp_path / "page.html"] if option == "--html" else []
        error = run("inspect", copy, option, *target, exit_code=1).stderr
        assert error.startswith("Error: the rows are damaged (")
        assert error.endswith("see what else `mft-data verify` finds\n")
    assert not (tmp_path / "page.html").exists()


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=6))
def test_the_last_supervised_stretch_is_found(masks):
    masks = [[0, *mask] for mask in masks]
    flat = np.array([flag for mask in masks for flag in mask], np.uint8)
    bounds = np.cumsum([0, *map(len, masks)])
    lasts, starts = last_positions(flat, bounds), last_span_starts(flat, bounds)
    for mask, begin, last, start in zip(masks, bounds.tolist(), lasts.tolist(), starts.tolist(), strict=False):
        text = "".join(map(str, mask))
        found = list(re.finditer("1+", text))
        expected = (begin + found[-1].end() - 1, begin + found[-1].start()) if found else (-1, begin + len(mask))
        assert (last, start) == expected


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=20))
def test_prompts_with_different_answers_are_those_of_a_plain_loop(pairs):
    ids = np.array([token for prompt, answer in pairs for token in (7, 7, 7, 7, prompt, answer)], np.uint16)
    bounds = np.arange(0, len(ids) + 1, 6)
    mask = np.tile(np.array([0, 0, 0, 0, 0, 1], np.uint8), len(pairs))
    rows = np.arange(len(pairs))
    repeats = Repeats()
    repeats.add(Segments("t", "train", ids, mask, bounds, rows, rows + 1, np.zeros(len(pairs), bool)))
    answers = {prompt: {answer for other, answer in pairs if other == prompt} for prompt, _ in pairs}
    expected = [row for row, (prompt, _) in enumerate(pairs) if len(answers[prompt]) > 1]
    finding = repeated_prompts("t", repeats.by_task()["t"])
    assert (finding.count if finding else 0) == len(expected)
    assert {place.row for place in finding.examples} <= set(expected) if finding else not expected


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text("ab \n"))))
def test_every_character_is_somebodys(turns):
    text = "".join(MARKERS[role] + content for role, content in turns)
    counts = Counter()
    for role, number in TextChecks(MARKERS).said(text):
        counts[role] += number
    assert counts.total() == len(text)
    assert turns or counts.keys() == {"(text)"}
    for role in MARKERS:
        assert counts[role] == sum(len(content) for name, content in turns if name == role)


def test_a_text_without_turns_is_a_document():
    assert list(TextChecks(MARKERS).said("x = 1\n")) == [("(text)", 6)]
    assert list(TextChecks({}).said("x = 1\n")) == [("(template)", 6)]


@pytest.mark.parametrize("has_system", [True, False])
def test_markers_are_those_of_the_template(has_system):
    chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    markers = role_markers(chatml if has_system else refusal + chatml, {})
    assert markers.keys() == {"user", "assistant"} | ({"system"} if has_system else set())
    assert all(marker.endswith(f"<|im_start|>{role}\n") for role, marker in markers.items())
    assert role_markers("nothing", {}) == {}
