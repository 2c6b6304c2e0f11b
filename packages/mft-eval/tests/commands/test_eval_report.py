"""The page of results: what is on it, that it stands alone, and that nothing of a model's can run in it."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mft_eval.cli import main
from mft_eval.report.highlighting import tokens_of
from mft_eval.report.page import make_page

pytestmark = pytest.mark.whole

ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
RIGHT = "def f(x):\n    return x * x\n"
HOSTILE = f'def f(x):\n    """{ATTACK}"""\n    raise ValueError({ATTACK!r})\n'
LOUD = "def f(x):\n    print('seen', x)\n    return x\n"


def run(*arguments, stdin=None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Problems, two models' generations and results; the second fails, with markup wherever it can put some."""
    folder = tmp_path_factory.mktemp("report")
    names = ["p0", f"p1{ATTACK}"]
    records = [
        {
            "problem_id": name,
            "prompt": f"Write f. {ATTACK}",
            "entry_point": "f",
            "test": "assert f(3) == 9\n",
            "reference": RIGHT,
            "tags": [f"<b>{number}"],
        }
        for number, name in enumerate(names)
    ]
    (folder / "problems.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for model, programs in (("base", [RIGHT, LOUD]), ("tuned", [HOSTILE, RIGHT])):
        lines = [
            json.dumps({"problem_id": name, "sample_index": 0, "completion": f"```python\n{program}```"}) + "\n"
            for name, program in zip(names, programs, strict=True)
        ]
        (folder / f"{model}.jsonl").write_text("".join(lines))
        scored = run("score", folder / "problems.jsonl", folder / f"{model}.jsonl", folder / f"{model}.json")
        assert scored.exit_code == 0, scored.output
    results = [folder / "base.json", folder / "tuned.json"]
    given = ["--generations", folder / "tuned.jsonl", "--generations", folder / "base.jsonl"]
    page = folder / "page.html"
    made = run("report", *results, "--html", page, "--problems", folder / "problems.jsonl", *given)
    assert (made.exit_code, made.stdout) == (0, f"{page}\n"), made.output
    return folder


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text within scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.is_script = tag == "script"
        if self.is_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.is_script = False

    def handle_data(self, data):
        if getattr(self, "is_script", False):
            self.scripts[-1] += data


def test_the_page_has_scores_prompts_programs_errors_and_outputs(folder):
    page = Page((folder / "page.html").read_text())
    found = json.loads(page.scripts[0])
    assert found["models"] == [str(folder / "base.json"), str(folder / "tuned.json")]
    first, second = found["problems"]
    assert ATTACK in first["prompt"]
    (base,), (tuned,) = (result["samples"] for result in first["results"])
    assert (base["verdict"], base["told"]) == ("passed", {})
    assert "".join(base["program"][1::2]) == RIGHT
    assert tuned["verdict"] == "exception"
    assert ATTACK in tuned["told"]["error"]
    assert tuned["told"]["failed at"] == "line 1 of the test: assert f(3) == 9"
    assert second["results"][0]["samples"][0]["told"]["output"] == "seen 3\n"
    assert (folder / "page.html").read_text().count("0.5000 <small>(0.") == 2


def test_the_page_stands_alone_and_has_no_markup_of_a_models(folder):
    page = Page((folder / "page.html").read_text())
    assert [tag for tag, _ in page.tags if tag in ("script", "img", "link", "iframe", "b")] == ["b"] * 6 + [
        "script"
    ] * 2
    assert not [attributes for _, attributes in page.tags if {"src", "href", "onerror"} & attributes.keys()]
    (policy,) = [
        found["content"]
        for tag, found in page.tags
        if tag == "meta" and "content" in found and "none" in found["content"]
    ]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline'; script-src 'sha256-" in policy


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_browser_shows_the_page_and_runs_nothing_else(folder):
    options = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
    command = ["chromium", *(f"--{option}" for option in options), f"--user-data-dir={folder / 'profile'}"]
    shown = subprocess.run(
        [*command, "--virtual-time-budget=3000", "--dump-dom", f"file://{folder / 'page.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "<title>problems.jsonl</title>" in shown
    assert "2 of 2 problems" in shown
    assert '<span class="k">def</span>' in shown
    assert "<img" not in shown


def test_results_alone_make_a_page(folder, tmp_path):
    assert run("report", folder / "base.json", "--html", tmp_path / "page.html").exit_code == 0
    found = json.loads(Page((tmp_path / "page.html").read_text()).scripts[0])
    assert found["problems"][0]["results"][0]["samples"][0]["program"] is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--generations", "tuned.jsonl"], "--problems"),
        (["--problems", "humaneval"], "is not the problems file"),
        (["--problems", "problems.jsonl", "--generations", "tuned.jsonl"], "of none of the results"),
    ],
)
def test_files_of_another_run_are_refused(folder, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(folder)
    result = run("report", "base.json", "--html", tmp_path / "page.html", *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert told in result.stderr
    assert not (tmp_path / "page.html").exists()


@given(st.text(), st.sampled_from(["python", "cpp", "javascript", "java", "go", "rust", "sql"]))
def test_tokens_are_the_program(program, language):
    tokens = tokens_of(program, language)
    # The lexers read every end of line as one newline.
    assert "".join(tokens[1::2]) == program.replace("\r\n", "\n").replace("\r", "\n")


@given(st.text())
def test_no_text_leaves_its_place(text):
    problem = {"problem_id": text, "tags": [text], "prompt": text, "results": [None]}
    bars = [{"name": text, "value": 0.5, "low": 0.0, "high": 1.0}]
    page = Page(make_page(text, text, [{"name": text, "bars": bars, "cells": {text: text}}], [problem]))
    assert len(page.tags) == len(Page(make_page("", "", [{"name": "", "bars": bars, "cells": {"": ""}}], [])).tags)
    assert json.loads(page.scripts[0])["problems"] == [problem]
