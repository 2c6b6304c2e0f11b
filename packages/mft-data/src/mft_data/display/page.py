"""A dataset as one self-contained page: tables, histograms, findings and coloured rows."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mft_data.display.audit_text import TITLES, quoted
from mft_data.display.row_display import CONTROL_PICTURES
from mft_data.display.summary import COUNTS, split_summaries, unused_fields_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mft_data.audit.findings import Audit, Finding, Place

MOST_FINDINGS, MOST_ROLES, MOST_LANGUAGES = 200, 20, 20
MOST_SEGMENTS, MOST_CHARACTERS = 40, 4000
HUES = {"assistant": 130, "user": 210, "system": 280, "tool": 30, "(text)": 60}


def page(
    name: str,
    manifest: dict[str, Any],
    histograms: Sequence[Mapping[str, Any]],
    audit: Audit,
    rows: Sequence[dict[str, Any]],
    most_first_rows: int,
) -> str:
    """The page; `rows` are of `inspect --row`, each with `why` it is shown."""
    from jinja2 import Environment

    summaries = split_summaries(manifest)
    for before, summary in zip([None, *summaries], summaries, strict=False):
        summary["is_first"] = before is None or before["task"] != summary["task"]
    anchors = {(row["task"], row["split"], row["row"]): f"row-{number}" for number, row in enumerate(rows)}
    source = files("mft_data.display").joinpath("page.html.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True, keep_trailing_newline=True).from_string(source)
    return template.render(
        name=name,
        num_tasks=len(manifest["tasks"]),
        totals={count: sum(summary[count] for summary in summaries) for count in COUNTS},
        seq_length=manifest["seq_length"],
        template=manifest["template"],
        producer=manifest["producer"],
        summaries=summaries,
        unused=unused_fields_lines(manifest),
        histograms=[{**block, "bins": with_percent(block["bins"], "conversations")} for block in histograms],
        audit=audit,
        num_looked_at=sum(audit.num_conversations.values()),
        checks=[check(title, getattr(audit, field), anchors) for field, title in TITLES.items()],
        roles=role_bars(audit),
        languages=with_percent(languages(audit), "count"),
        longest=[
            {"text": quoted(text), "characters": len(text), "count": count, "task": place.task, "place": str(place)}
            for text, count, place in audit.longest_tokens
        ],
        rows=[page_row(row, f"row-{number}") for number, row in enumerate(rows)],
        most_first_rows=most_first_rows,
    )


def with_percent(entries: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The entries with the `percent` that a value is of the largest."""
    most = max((entry[key] for entry in entries), default=1)
    return [{**entry, "percent": 100 * entry[key] / most} for entry in entries]


def check(title: str, findings: Sequence[Finding], anchors: Mapping[tuple[str, str, int], str]) -> dict[str, Any]:
    """One kind of findings, those with most conversations first."""
    largest = sorted(findings, key=lambda finding: -finding.count)[:MOST_FINDINGS]

    def example(place: Place) -> dict[str, Any]:
        return {"text": str(place), "anchor": anchors.get((place.task, place.split, place.row))}

    return {
        "title": title[0].upper() + title[1:],
        "total": sum(finding.count for finding in findings),
        "num_more": len(findings) - len(largest),
        "findings": [
            {
                "task": finding.task,
                "count": finding.count,
                "share": finding.share,
                "what": shown(finding.what),
                "examples": [example(place) for place in finding.examples],
            }
            for finding in largest
        ],
    }


def role_bars(audit: Audit) -> list[dict[str, Any]]:
    """The shares of the roles: of all tasks together, and of each if there are not many."""
    by_task = {task: counts for task, counts in audit.role_characters.items() if counts.total()}
    total: Counter[str] = Counter()
    for counts in by_task.values():
        total += counts
    if len(total) < 2:
        return []
    titled = {"all tasks": total} | (by_task if len(by_task) <= MOST_ROLES else {})
    return [
        {
            "title": title,
            "parts": [
                {"name": role, "share": count / counts.total(), "hue": HUES.get(role, 0)}
                for role, count in counts.most_common()
            ],
        }
        for title, counts in titled.items()
    ]


def languages(audit: Audit) -> list[dict[str, Any]]:
    """The languages of fences with most tokens."""
    total: Counter[str] = Counter()
    for counts in audit.fence_tokens.values():
        total += counts
    return [{"name": language[:20], "count": count} for language, count in total.most_common(MOST_LANGUAGES)]


def page_row(row: dict[str, Any], anchor: str) -> dict[str, Any]:
    """A row with as much of each of its conversations as a page should hold."""
    segments = [page_segment(segment) for segment in row["segments"][:MOST_SEGMENTS]]
    return {**row, "anchor": anchor, "num_segments": len(row["segments"]), "segments": segments}


def page_segment(segment: dict[str, Any]) -> dict[str, Any]:
    """A conversation's pieces up to MOST_CHARACTERS, and its counts."""
    pieces, room = [], MOST_CHARACTERS
    for piece in segment["pieces"]:
        pieces.append({**piece, "text": shown(piece["text"][: max(room, 0)])})
        room -= len(piece["text"])
        if room < 0:
            break
    counts = {"num_tokens": len(segment["input_ids"]), "num_supervised": sum(segment["loss_mask"])}
    return {"side": None, **segment, **counts, "pieces": pieces, "is_cut": room < 0}


def shown(text: str) -> str:
    """A text with pictures in place of what a browser would leave out or obey."""
    return text.translate(CONTROL_PICTURES)
