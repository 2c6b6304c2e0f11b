"""The report as one HTML page that needs nothing else: no request, no library, its own style and script inside."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_train.report.charts import charts_sections
from mft_train.report.tables import config_section, data_section, events_section, figures_section
from mft_train.report.task_figures import duration_text, loss_text, perplexity_text

if TYPE_CHECKING:
    from mft_train.report.provenance import Manifest
    from mft_train.report.run_log import RunLog


def page(name: str, log: RunLog, config: dict[str, Any], manifest: Manifest | str, version: str = "") -> str:
    """The whole page about a run called `name`; the same inputs give the same page.

    With a `version` it is one that is served, and loads itself anew when its server has another one.
    """
    producer = f"mft-train {importlib.metadata.version('mft-train')}"
    return f"""{head(f"{name}, training report", version)}
<body>
<header>
<p class="kind">Training report</p>
<h1>{escape(name)}</h1>
<p>{escape(subject(config, log))}</p>
{tiles(log, config)}
</header>
<main>
{figures_section(log)}
{charts_sections(log)}
{events_section(log)}
{data_section(str(config.get("dataset", "")), manifest)}
{config_section(config)}
</main>
<footer><p>Losses are in nats per supervised token; perplexity is e to the loss. Made by {escape(producer)} from the \
run's config.yaml and metrics.jsonl and the dataset's manifest.json.</p></footer>
<output id="readout" hidden></output>
<script>{own_file("report.js")}</script>
{live_script(version)}</body>
</html>
"""


def waiting_page(name: str, reason: str, version: str) -> str:
    """The page of a run that has nothing to show yet, or whose files cannot be read: why, until that changes."""
    return f"""{head(f"{name}, training report", version)}
<body>
<header>
<p class="kind">Training report</p>
<h1>{escape(name)}</h1>
<p>{escape(reason)}</p>
</header>
{live_script(version)}</body>
</html>
"""


def head(title: str, version: str) -> str:
    """The page up to its body; nothing but the page's own script and style is let in."""
    scripts = ["report.js", *["watch.js"] * bool(version)]
    hashes = [base64.b64encode(hashlib.sha256(own_file(script).encode()).digest()).decode() for script in scripts]
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src " + " ".join(
        f"'sha256-{script_hash}'" for script_hash in hashes
    )
    policy += "; connect-src 'self'" if version else ""
    attribute = f' data-version="{escape(version)}"' if version else ""
    return f"""<!doctype html>
<html lang="en"{attribute}>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{own_file("report.css")}</style>
</head>"""


def own_file(name: str) -> str:
    """The style or a script, which lies beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def live_script(version: str) -> str:
    """What keeps a page that is served up to date."""
    return f'<p id="live" class="note" role="status"></p>\n<script>{own_file("watch.js")}</script>\n' if version else ""


def subject(config: dict[str, Any], log: RunLog) -> str:
    """What was trained, and how that stands, in a sentence."""
    method = {"lora": "LoRA adapter for", "qlora": "QLoRA adapter for", "full": "All weights of"}.get(
        str(config.get("method")), "Trained from"
    )
    return f"{method} {config.get('model', 'an unnamed model')}. Status: {log.status}."


def tiles(log: RunLog, config: dict[str, Any]) -> str:
    """The run's main numbers."""
    best, best_step = min(((value, step) for step, value in log.validation.finite), default=(math.nan, 0))
    planned = log.num_steps or config.get("max_steps")
    left = log.seconds_left
    logged = "" if log.num_logged == log.last_step else f"in {log.num_logged:,} logged steps, "
    entries = [
        ("Optimizer steps", f"{log.last_step:,}", f"of {planned:,}" if isinstance(planned, int) else ""),
        *([("Time left", duration_text(left), "of training, at its speed")] if left is not None else []),
        ("Tasks", f"{len(log.tasks):,}", f"{len(log.guards)} of them guards" if log.guards else ""),
        (
            "Best validation loss",
            loss_text(best),
            f"at step {best_step:,}" if log.validation.finite else "no validation",
        ),
        ("Last validation loss", loss_text(log.validation.last), f"perplexity {perplexity_text(log.validation.last)}"),
        ("Tokens", f"{log.tokens:,}", f"{logged}{log.supervised_tokens:,} supervised"),
        ("Tokens per second", f"{log.tokens / log.seconds:,.0f}" if log.seconds else "-", "while training"),
        *(
            [("Peak memory", f"{max(log.peak_memory.finite_values):.2f} GiB", "of rank 0")]
            if log.peak_memory.finite
            else []
        ),
    ]
    rows = (
        f"<div><dt>{label}</dt><dd>{value}</dd>{f'<dd>{more}</dd>' if more else ''}</div>"
        for label, value, more in entries
    )
    return f'<dl class="tiles">{"".join(rows)}</dl>'
