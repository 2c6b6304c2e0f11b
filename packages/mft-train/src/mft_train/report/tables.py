"""The tables and lists of a report: figures by task, events, data provenance and config."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from mft_train.config.config_file import flatten
from mft_train.report.provenance import MOST_SOURCES
from mft_train.report.task_figures import NONE, guard_note, task_figures

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mft_train.report.provenance import Manifest, TaskData
    from mft_train.report.run_log import RunLog

MOST_EVENTS = 100
EVENT_WORDS = {
    "resume": "resumed from",
    "interrupt": "interrupted by",
    "evaluation": "evaluation failed:",
    "stop": "stopped early:",
    "end": "ended",
}
DATA_COLUMNS = ("files", "bytes", "read", "not used", "rows", "tokens", "supervised", "rows", "tokens", "supervised")


def figures_section(log: RunLog) -> str:
    """The table of losses by task."""
    first_step = log.validation.steps[0] if log.validation.steps else 0
    groups = '<tr><td></td><th class="group edge" colspan="5" scope="colgroup">Validation loss</th>' + (
        '<th class="group edge" colspan="2" scope="colgroup">Perplexity</th>'
        '<th class="group edge" scope="colgroup">Training loss</th>'
        '<th class="group edge" scope="colgroup">Weight</th>'
        '<th class="group edge" scope="colgroup">Share</th></tr>'
    )
    columns = (
        "Task",
        f"step {first_step:,}",
        "best",
        "at step",
        "last",
        "change",
        "last",
        "change",
        "last logged",
        "last",
        "mean",
    )
    edges = {1, 6, 8, 9, 10}
    heads = "".join(cell("th", text, edge=index in edges, scope="col") for index, text in enumerate(columns))
    rows = []
    for figures in task_figures(log):
        cells = figures.cells
        tones = {5: tone(cells[4]), 7: tone(cells[6])}
        texts = "".join(
            cell(
                "td",
                "&ndash;" if text == NONE else escape(text).replace("-", "&minus;"),
                edge=index in edges,
                tone=tones.get(index, ""),
            )
            for index, text in enumerate(cells, start=1)
        )
        rows.append(f"<tr{' class=mean' if figures.is_mean else ''}>{name_cell(figures.label)}{texts}</tr>")
    note = "Changes are from the first validation to the last." if log.validation.steps else "There was no validation."
    if log.is_cut_off:
        note += " The last line of metrics.jsonl was cut off, and is left out."
    if any(log.task_shares.values()):
        note += " A share is that of the objective, whose gradient a step follows, over the logged steps."
    risen = "".join(
        f'<p class="note worse">Note: {escape(guard_note(task, rise))}.</p>\n'
        for task, rise in log.risen_guards.items()
    )
    return section("Results by task", note, risen + table("Losses by task", groups + f"<tr>{heads}</tr>", rows))


def events_section(log: RunLog) -> str:
    """Checkpoints, resumes, interrupts and the end, in words."""
    entries = [
        f"Step {step:,}: {EVENT_WORDS[kind]} {details}".rstrip() for step, kind, details in log.happenings[:MOST_EVENTS]
    ]
    if len(log.happenings) > MOST_EVENTS:
        entries.append(f"and {len(log.happenings) - MOST_EVENTS:,} more")
    if log.checkpoints:
        entries.insert(0, f"Checkpoints at {listing(log.checkpoints)}")
    items = "".join(f"<li>{escape(entry)}</li>" for entry in entries) or "<li>none yet</li>"
    return section("Events", "", f'<ul class="events">{items}</ul>')


def listing(steps: Sequence[int]) -> str:
    """Steps in words, the middle of a long list left out."""
    texts = [f"{step:,}" for step in steps]
    if len(texts) > 12:
        texts = [*texts[:5], f"… ({len(texts) - 7} more) …", *texts[-2:]]
    return ("step " if len(steps) == 1 else "steps ") + " · ".join(texts)


def data_section(location: str, manifest: Manifest | str) -> str:
    """Where the data came from, as the manifest says now; or why it cannot be said."""
    place = f"Dataset <code>{escape(location)}</code>"
    if isinstance(manifest, str):
        return section("Data", "", f"<p>{place}. {escape(manifest)}</p>")
    groups = (
        '<tr><td></td><th class="group edge" colspan="2" scope="colgroup">Sources</th>'
        '<th class="group edge" colspan="2" scope="colgroup">Conversations</th>'
        '<th class="group edge" colspan="3" scope="colgroup">Training</th>'
        '<th class="group edge" colspan="3" scope="colgroup">Validation</th></tr>'
    )
    edges = {1, 3, 5, 8}
    heads = "".join(
        cell("th", text, edge=index in edges, scope="col") for index, text in enumerate(("Task", *DATA_COLUMNS))
    )
    rows = [
        f"<tr>{name_cell(task.name)}"
        + "".join(cell("td", f"{count:,}", edge=index in edges) for index, count in enumerate(task.counts, start=1))
        + "</tr>"
        for task in manifest.tasks
    ]
    facts = [
        *flatten(manifest.settings),
        *((f"sha256 of {name}", value) for name, value in manifest.fingerprints.items()),
    ]
    note = f'<p class="note">{place}, as its manifest was when this report was made.</p>'
    sources = "".join(source_list(task) for task in manifest.tasks)
    body = table("Data by task", f"{groups}<tr>{heads}</tr>", rows)
    more = f"<details><summary>Sources and their fingerprints (sha256)</summary>{sources}</details>"
    build = f"<details><summary>How the dataset was built</summary>{settings(facts)}</details>"
    return section("Data", "", f"{note}{body}{more}{build}")


def source_list(task: TaskData) -> str:
    """The files of a task, with their sizes and hashes."""
    items = [
        f"<li><code>{escape(source.file)}</code>, {source.size_bytes:,} bytes, "
        f"<code>{escape(source.sha256)}</code></li>"
        for source in task.sources[:MOST_SOURCES]
    ]
    if len(task.sources) > MOST_SOURCES:
        items.append(f"<li>and {len(task.sources) - MOST_SOURCES:,} more, in the manifest</li>")
    return f"<h3>{escape(task.name)}</h3><ul>{''.join(items)}</ul>"


def config_section(config: dict[str, Any]) -> str:
    """The resolved config, every key."""
    return section("Config", "As resolved at the start of the run.", settings(flatten(config)))


def settings(pairs: Iterable[tuple[str, str]]) -> str:
    """Keys and values as a list in columns."""
    rows = (f"<div><dt>{escape(key)}</dt><dd><code>{escape(value)}</code></dd></div>" for key, value in pairs)
    return f'<dl class="settings">{"".join(rows)}</dl>'


def section(title: str, note: str, body: str) -> str:
    """A section with a heading."""
    paragraph = f'<p class="note">{escape(note)}</p>\n' if note else ""
    return f"<section>\n<h2>{title}</h2>\n{paragraph}{body}\n</section>"


def table(label: str, heads: str, rows: Iterable[str]) -> str:
    """A table that scrolls by itself where the page is narrow."""
    body = "\n".join(rows)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table>\n'
        f"<thead>{heads}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def name_cell(name: str) -> str:
    """The head of a row: a task's name, whole in its title where it is cut."""
    return f'<th scope="row" title="{escape(name)}">{escape(name)}</th>'


def cell(kind: str, content: str, *, edge: bool, tone: str = "", scope: str = "") -> str:
    """A table cell around escaped content; `edge` begins a group of columns."""
    classes = " ".join(name for name, is_on in (("edge", edge), (tone, tone)) if is_on)
    attributes = (f' class="{classes}"' if classes else "") + (f' scope="{scope}"' if scope else "")
    return f"<{kind}{attributes}>{content}</{kind}>"


def tone(change: str) -> str:
    """The class of a signed change of a loss: lower is better."""
    return {"-": "better", "+": "worse"}.get(change[0], "") if change != NONE and change.strip("+-0.%") else ""
