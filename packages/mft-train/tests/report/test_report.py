"""The report on a run: its table, its page, and what it makes of broken input. Metrics files are made by hand here."""

import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mft_train.cli import main
from mft_train.report.page import page
from mft_train.report.provenance import Manifest
from mft_train.report.run_log import RunLog, add_event

VOID = {"meta", "br", "link", "img", "input", "hr"}
SHA = {letter: letter * 64 for letter in "abc"}
finite = st.floats(allow_nan=False, allow_infinity=False)
losses = st.one_of(st.none(), finite)


def train(step: int, losses: dict, weights: dict | None = None, **other) -> dict:
    numbers = {
        "learning_rate": 1e-4,
        "grad_norm": 0.5,
        "supervised_tokens": 40,
        "tokens": 100,
        "tokens_per_second": 50.0,
        "peak_memory_bytes": {1: 3 * 2**29, 2: 2**31}.get(step, 2**30),  # a resume begins anew
    }
    return (
        {"event": "train", "global_step": step, "loss": 1.5, "task_losses": losses}
        | {"task_weights": weights or dict.fromkeys(losses, 1.0)}
        | numbers
        | other
    )


def validation(step: int, losses: dict) -> dict:
    known = [loss for loss in losses.values() if loss is not None]
    mean = sum(known) / len(known) if known else None
    return {"event": "validation", "global_step": step, "loss": mean, "task_losses": losses}


EVENTS = [
    validation(0, {"sql": 2.0, "docs": 1.0}),
    train(1, {"sql": 2.0, "docs": 0.9}),
    train(2, {"sql": 1.5}, {"sql": 1.25, "docs": 0.75}),
    validation(2, {"sql": 1.5, "docs": 0.75}),
    {"event": "checkpoint", "global_step": 2, "path": "checkpoints/step-00000002"},
    {"event": "interrupt", "global_step": 2, "signal": "SIGTERM"},
    {"event": "resume", "global_step": 2, "checkpoint": "step-00000002"},
    {"event": "weather", "global_step": 3, "is_sunny": True},
    train(4, {"sql": 1.0, "docs": 0.8}, {"sql": 1.5, "docs": 0.5}),
    validation(4, {"sql": 1.75, "docs": 0.5}),
    {"event": "end", "global_step": 4},
]


@pytest.fixture
def make_run(tmp_path):
    def write(
        events: list[dict], tail: str = "", config: str = "model: base/\ndataset: none/\nmethod: lora\nmax_steps: 4\n"
    ):
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        lines = "".join(json.dumps(event) + "\n" for event in events)
        (run_dir / "metrics.jsonl").write_text(lines + tail, encoding="utf-8")
        (run_dir / "config.yaml").write_text(config, encoding="utf-8")
        return run_dir

    return write


class Page(HTMLParser):
    """Checks that tags nest; collects tags with their attributes, and text by the tag around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), self.get_starttag_text()
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else "", text))

    def text(self, tag: str) -> list[str]:
        return [text for around, text in self.texts if around == tag]

    def curves(self, label: str) -> list[str]:
        return [values["d"] for tag, values in self.tags if tag == "path" and values.get("data-label") == label]


def report(*arguments) -> str:
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def error(*arguments) -> str:
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr


def html(run_dir) -> str:
    return report(run_dir, "--html", "-")


def test_the_table_says_where_each_task_started_and_ended(make_run):
    # 300 tokens at 50 a second; docs falls from 1 to 0.5: perplexity e^0.5 = 1.649, e^-0.5 - 1 = -39.3%.
    assert report(make_run(EVENTS)) == (
        "4 steps, finished; 300 tokens (120 supervised) in the 3 logged steps; 50 tokens/s; peak memory 2.00 GiB\n"
        "\n"
        "validation loss   first    best  at step    last   change  perplexity  change  last train  weight  share\n"
        "sql              2.0000  1.5000        2  1.7500  -0.2500       5.755  -22.1%      1.0000  1.5000      -\n"
        "docs             1.0000  0.5000        4  0.5000  -0.5000       1.649  -39.3%      0.8000  0.5000      -\n"
        "mean of tasks    1.5000  1.1250        2  1.1250  -0.3750       3.080  -31.3%           -       -      -\n"
    )


def test_the_page_is_well_formed_and_every_task_has_its_curves(make_run):
    found = Page(html(make_run(EVENTS)))
    for task in ("sql", "docs"):
        assert len(found.curves(task)) == 3, "training loss, validation loss, weights"
        assert task in found.text("h3")
    assert len(found.curves("training")) == len(found.curves("validation")) == 2
    assert len(found.curves("smoothed")) == 3
    assert len(found.curves("learning rate")) == 1
    # 1.5, 2 and 1 GiB on a scale from 0 to 2.
    assert found.curves("peak memory") == ["M1 2500L2 0L4 5000"]
    raw = [values for tag, values in found.tags if tag == "path" and values["class"].startswith("raw")]
    assert len(raw) == 2 + 3
    # Validation of docs: 1, 0.75, 0.5 on a scale from 0.5 to 2, of 10,000 units from the top down.
    assert "M0 6667L2 8333L4 10000" in found.curves("docs")


def test_every_chart_has_a_title_a_description_and_the_marks(make_run):
    found = Page(html(make_run(EVENTS)))
    charts = [values for tag, values in found.tags if tag == "svg" and values["class"] == "chart"]
    ids = [values["id"] for _, values in found.tags if "id" in values]
    assert len(charts) == 2 + 2 + 1 + 5
    assert len(ids) == len(set(ids))
    for chart in charts:
        assert chart["role"] == "img"
        assert set(chart["aria-labelledby"].split()) <= set(ids)
    assert "sql: 2 at step 0 to 1.75 at step 4. docs: 1 at step 0 to 0.5 at step 4." in found.text("desc")
    assert found.text("text").count("interrupted, resumed") == len(charts)
    assert [values["d"] for _, values in found.tags if values.get("class") == "checkpoint"] == ["M2 10000V9600"] * 10
    items = found.text("li")
    assert "Checkpoints at step 2" in items
    assert "Step 2: interrupted by SIGTERM" in items
    assert "Step 2: resumed from step-00000002" in items


def test_the_page_asks_for_nothing(make_run):
    text = html(make_run(EVENTS))
    found = Page(text)
    for tag, values in found.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form", "use", "image"}
        assert not {"src", "href", "xlink:href", "srcset", "action", "style"} & set(values)
        assert not any(name.startswith("on") for name in values)
    assert "://" not in text
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", text)
    (policy,) = [values["content"] for tag, values in found.tags if values.get("http-equiv")]
    assert policy.startswith("default-src 'none';")


def test_same_inputs_give_the_same_bytes(make_run, tmp_path):
    run_dir = make_run(EVENTS)
    for name in ("a.html", "b.html"):
        assert report(run_dir, "--html", tmp_path / name) == f"{tmp_path / name}\n"
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes() == html(run_dir).encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html", "run"]


def test_a_report_touches_no_file_beside_it(make_run, tmp_path):
    run_dir, mine = make_run(EVENTS), tmp_path / f".report.html.partial-{os.getpid()}"
    mine.write_text("mine")
    report(run_dir, "--html", tmp_path / "report.html")
    assert mine.read_text() == "mine"


def test_an_existing_file_is_kept_without_overwrite(make_run, tmp_path):
    run_dir, path = make_run(EVENTS), tmp_path / "report.html"
    path.write_text("mine")
    assert error(run_dir, "--html", path) == f'Error: "{path}" exists, use --overwrite or another name\n'
    assert path.read_text() == "mine"
    report(run_dir, "--html", path, "--overwrite")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert error(run_dir, "--html", tmp_path) == f'Error: "{tmp_path}" is a folder, name a file\n'
    missing = tmp_path / "none" / "report.html"
    assert error(run_dir, "--html", missing) == (
        f'Error: there is no folder "{missing.parent}" for "report.html", make it first\n'
    )
    assert CliRunner().invoke(main, ["report", str(run_dir), "--overwrite"]).exit_code == 2


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a&amp;\"b'", "é" * 300, "</title></svg>", "a\nb\x1b[31m"]
)
def test_any_task_name_is_shown_as_text(make_run, name):
    run_dir = make_run([validation(0, {name: 2.0}), train(1, {name: 1.5}), validation(1, {name: 1.0})])
    found = Page(html(run_dir))
    assert name in found.text("h3")
    assert len(found.curves(name)) == 2
    assert found.text("script").count("alert(1)") == 0
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    (row,) = report(run_dir).splitlines()[3:]
    assert len(row) < 120
    assert row.isprintable()


def test_the_config_and_the_run_are_shown_as_text(make_run):
    config = 'model: "<b>base</b>"\ndataset: none/\nloss: {balancer: "</dl><i>"}\nlora: {target_modules: [q, "<u>"]}\n'
    found = Page(html(make_run(EVENTS, config=config)))
    assert not {"b", "i", "u"} & {tag for tag, _ in found.tags}
    codes = found.text("code")
    assert "<b>base</b>" in codes
    assert "</dl><i>" in codes
    assert '["q","<u>"]' in codes
    assert "lora.target_modules" in found.text("dt")


def write_manifest(path, **changes) -> None:
    split = {"conversations": 9, "rows": 7, "tokens": 1234, "supervised_tokens": 567}
    source = {"file": "part<0>.jsonl", "split": None, "size_bytes": 4321, "sha256": SHA["a"]}
    task = {
        "name": "sql",
        "task_id": 0,
        "sources": [source],
        "conversations": {"read": 20},
        "splits": {"train": split, "validation": split | {"conversations": 1, "rows": 1}},
    }
    manifest = {"format_version": "1", "producer": "mft-data 0.1.0", "seq_length": 512, "tokenizer_sha256": SHA["b"]}
    path.mkdir()
    (path / "manifest.json").write_text(json.dumps(manifest | {"content_sha256": SHA["c"], "tasks": [task]} | changes))


def test_the_page_says_where_the_data_came_from(make_run, tmp_path):
    write_manifest(tmp_path / "dataset")
    found = Page(html(make_run(EVENTS, config=f"dataset: {tmp_path / 'dataset'}\n")))
    codes = found.text("code")
    assert {"part<0>.jsonl", SHA["a"], SHA["b"], SHA["c"], "512", "mft-data 0.1.0"} <= set(codes)
    cells = found.text("td")
    assert cells[-10:] == ["1", "4,321", "20", "10", "7", "1,234", "567", "1", "1,234", "567"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (None, "Its manifest cannot be read from here"),
        ({"format_version": "9"}, "The format_version of its manifest is 9, not 1 or 2."),
        ({"tasks": [{"name": "sql"}]}, "Its manifest.json is not one that this version can read."),
        ({"tasks": 3}, "Its manifest.json is not one that this version can read."),
    ],
)
def test_a_dataset_that_cannot_be_read_is_said_to_be(make_run, tmp_path, changes, reason):
    if changes:
        write_manifest(tmp_path / "dataset", **changes)
    text = html(make_run(EVENTS, config=f"dataset: {tmp_path / 'dataset'}\n"))
    Page(text)
    assert reason in text


def test_a_remote_dataset_is_not_read(make_run):
    assert "It is remote" in html(make_run(EVENTS, config="dataset: s3://bucket/dataset\n"))


def test_a_run_without_validation_is_reported(make_run):
    run_dir = make_run([train(1, {"sql": 2.0}), train(2, {"sql": 1.0})])
    assert report(run_dir).splitlines() == [
        "2 steps, not finished; 200 tokens (80 supervised); 50 tokens/s; peak memory 2.00 GiB",
        "",
        "validation loss  first  best  at step  last  change  perplexity  change  last train  weight  share",
        "sql                  -     -        -     -       -           -       -      1.0000  1.0000      -",
        "",
        "no validation in this run",
    ]
    found = Page(html(run_dir))
    assert "There was no validation." in found.text("p")
    assert "the same at every step" in found.text("p")
    assert len(found.curves("sql")) == 1


@pytest.mark.parametrize("events", [[train(1, {"sql": 2.0})], [validation(0, {"sql": 2.0})]])
def test_one_event_is_enough(make_run, events):
    run_dir = make_run(events)
    found = Page(html(run_dir))
    assert "circle" in {tag for tag, _ in found.tags}, "a lone value has no line, so it needs a dot"
    assert report(run_dir)


def test_numbers_that_are_not_finite_leave_a_gap(make_run):
    steps = [train(step, {"sql": None if step == 3 else float(step)}, loss=None) for step in range(1, 6)]
    run_dir = make_run([validation(0, {"sql": None}), *steps, validation(5, {"sql": None})])
    found = Page(html(run_dir))
    assert [curve.count("M") for curve in found.curves("sql")] == [2]
    assert "nothing was logged" in found.text("p")
    assert "nan" not in "".join(text for _, text in found.texts).lower()
    assert report(run_dir).splitlines()[3].split() == [
        "sql",
        "-",
        "-",
        "-",
        "-",
        "-",
        "-",
        "-",
        "5.0000",
        "1.0000",
        "-",
    ]


def test_a_torn_last_line_is_left_out_and_said(make_run):
    run_dir = make_run(EVENTS[:3], tail='{"event":"train","global_st')
    assert "last line cut off and left out" in report(run_dir)
    assert "was cut off, and is left out" in html(run_dir)


@pytest.mark.parametrize(
    ("events", "tail", "message"),
    [
        ([], "", "no step and no validation is logged yet, in {path}, try again later"),
        (EVENTS[:1], "{torn\n{}\n", "not a line of JSON, in {path} line 2"),
        ([{"global_step": 1}], "", "the event lacks the key 'event', in {path} line 1"),
        ([{"event": "train", "global_step": 1}], "", "the event lacks the key 'loss', in {path} line 1"),
        ([train(1, {"sql": "low"})], "", "the event is malformed: 'low' is not a number, in {path} line 1"),
        ([train(-1, {"sql": 1})], "", "the event is malformed: global_step -1 is not a count, in {path} line 1"),
    ],
)
def test_a_bad_log_is_one_line_of_error(make_run, events, tail, message):
    run_dir = make_run(events, tail)
    expected = f"Error: {message.format(path=run_dir / 'metrics.jsonl')}\n"
    assert error(run_dir) == error(run_dir, "--html", "-") == expected


def test_a_folder_that_is_no_run_is_one_line_of_error(make_run, tmp_path):
    fix = "is it the output of a run?"
    assert error(tmp_path) == f"Error: there is no metrics.jsonl, in {tmp_path}, {fix}\n"
    run_dir = make_run(EVENTS)
    (run_dir / "config.yaml").unlink()
    assert error(run_dir, "--html", "-") == f"Error: there is no config.yaml, in {run_dir}, {fix}\n"
    assert report(run_dir)


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ([{"event": "interrupt", "global_step": 1, "signal": "SIGINT"}], "interrupted by SIGINT"),
        (
            [
                {"event": "early_stop", "global_step": 1, "best_step": 0, "best_loss": 1.5},
                {"event": "end", "global_step": 1},
            ],
            "stopped early: best validation loss 1.5000 at step 0",
        ),
        ([{"event": "end", "global_step": 1}, train(2, {"sql": 1.0})], "not finished"),
    ],
)
def test_the_status_is_that_of_the_last_event(make_run, last, status):
    assert status in report(make_run([train(1, {"sql": 1.0}), *last])).splitlines()[0]


def test_a_long_run_gives_a_small_page_that_keeps_its_spikes(make_run):
    events = (
        train(
            step, {f"task-{k}": 2 + math.sin(step * (k + 1)) for k in range(3)}, grad_norm=99.0 if step == 4321 else 1.0
        )
        for step in range(1, 20_001)
    )
    text = html(make_run(list(events)))
    assert len(text.encode()) < 500_000
    raw = [values["d"] for tag, values in Page(text).tags if tag == "path" and values["class"].startswith("raw")]
    assert any("L4321 100L" in curve for curve in raw), "99 on a scale to 100"


def test_a_report_loads_no_heavy_library(make_run):
    program = (
        "import sys\nfrom mft_train.cli import main\n"
        f"main(['report', {str(make_run(EVENTS))!r}, '--html', '-'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'numpy', 'streaming'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@given(st.lists(st.tuples(losses, losses, losses), min_size=1, max_size=30))
def test_any_numbers_give_a_well_formed_page(rows):
    log = RunLog()
    for step, (first, second, rate) in enumerate(rows):
        add_event(log, train(step, {"a": first, "b": second}, grad_norm=rate, tokens_per_second=rate))
        add_event(log, {"event": "validation", "global_step": step, "loss": rate, "task_losses": {"a": second}})
    found = Page(page("run", log, {}, Manifest({}, {}, ())))
    drawn = "".join(values["d"] for tag, values in found.tags if tag == "path")
    assert re.fullmatch(r"(?:[MLV ]|-?\d)*", drawn)
