"""One self-contained HTML page out of scores and problems; nothing of a model's can become markup or script."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>{lead}</p>
{scores}
<main id="browser"></main>
<script type="application/json" id="found">{found}</script>
<script>{script}</script>
</body>
</html>
"""


def make_page(title: str, lead: str, models: Sequence[dict[str, Any]], problems: Sequence[dict[str, Any]]) -> str:
    """The page. Each of `models` has `name` and `cells` (head -> text, the same heads in all) and `bars`, each of which
    has `name`, `value`, `low` and `high` from 0 to 1. FORMAT.md has the fields of `problems`.
    """
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_digest(script)}'; base-uri 'none'"
    found = {"models": [model["name"] for model in models], "problems": problems}
    return _PAGE.format(
        policy=html.escape(policy),
        title=html.escape(title),
        lead=html.escape(lead),
        style=style,
        scores=_scores(models),
        found=_inert(found),
        script=script,
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _inert(value: Any) -> str:
    """JSON without any character that HTML reads as more than text."""
    escaped = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        escaped = escaped.replace(character, f"\\u{ord(character):04x}")
    return escaped


def _scores(models: Sequence[dict[str, Any]]) -> str:
    heads = ["", *(bar["name"] for bar in models[0]["bars"]), *models[0]["cells"]]
    rows = [
        "".join(
            [
                f"<th scope=row>{html.escape(model['name'])}</th>",
                *map(_bar, model["bars"]),
                *(f"<td>{html.escape(cell)}</td>" for cell in model["cells"].values()),
            ]
        )
        for model in models
    ]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="scores">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'


def _bar(bar: dict[str, Any]) -> str:
    """A score as a figure, and as a bar with its interval as a line across its end."""
    value, low, high = (100 * bar[key] for key in ("value", "low", "high"))
    drawn = (
        f'<span class="bar"><i style="width:{value:.2f}%"></i>'
        f'<b style="left:{low:.2f}%;width:{high - low:.2f}%"></b></span>'
    )
    return f"<td>{bar['value']:.4f} <small>({bar['low']:.4f} to {bar['high']:.4f})</small>{drawn}</td>"
