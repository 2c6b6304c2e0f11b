"""An audit as text: a block for each thing that was looked for, with the tasks that have most of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mft_data.display.row_display import CONTROL_PICTURES
from mft_data.errors import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mft_data.audit.findings import Audit, Finding

MOST_TASKS, MOST_LANGUAGES = 5, 12
SHOWN_CHARACTERS = 60
# In the order in which they are shown: the field of an audit, and what stands above its findings.
TITLES = {
    "little_supervised": "little or nothing supervised (below 3 tokens or 1 % of the conversation)",
    "lost_stop_tokens": "no stop token after the last answer (cut off)",
    "repeated_prompts": "the same prompt with different answers",
    "openings": "conversations of a task that begin alike (24 tokens)",
    "answer_openings": "answers of a task that begin alike (8 tokens)",
    "encodings": "suspicious characters",
}


def format_audit(audit: Audit) -> str:
    """Everything that was looked for, found or not; examples are for `inspect --task T --row N`."""
    total = sum(audit.num_conversations.values())
    num_tasks = len(audit.num_conversations)
    heading = f"{total:,} {plural(total, 'conversation')} of {num_tasks:,} {plural(num_tasks, 'task')}"
    if audit.num_read_as_text < total:
        heading += f"; characters, roles and fences of {audit.num_read_as_text:,} of them, evenly spaced"
    blocks = [heading]
    blocks += [format_findings(title, getattr(audit, name)) for name, title in TITLES.items()]
    blocks.append(format_roles(audit))
    blocks.append(format_languages(audit))
    lines = [
        f"  {quoted(text)} {len(text)} {plural(len(text), 'character')}, {count:,} {plural(count, 'time')}, "
        f"first in {place.task} {place}"
        for text, count, place in audit.longest_tokens
    ]
    blocks.append("\n".join(["longest tokens", *(lines or ["  none"])]))
    return "\n\n".join(blocks)


def format_findings(title: str, findings: Sequence[Finding]) -> str:
    """A block with the tasks that have most of something."""
    if not findings:
        return f"{title}: none"
    total = sum(finding.count for finding in findings)
    tasks = len({finding.task for finding in findings})
    lines = [f"{title}: {total:,} in {tasks:,} {plural(tasks, 'task')}"]
    shown = sorted(findings, key=lambda finding: -finding.count)[:MOST_TASKS]
    for finding in shown:
        what = f" {quoted(finding.what)}" if finding.what else ""
        places = ", ".join(map(str, finding.examples))
        lines.append(f"  {finding.task}: {finding.count:,} ({finding.share:.1%}){what}, for example {places}")
    if len(findings) > len(shown):
        lines.append(f"  and {len(findings) - len(shown):,} more (--json has all)")
    return "\n".join(lines)


def format_roles(audit: Audit) -> str:
    """The share of characters of each role, of all tasks together and of those where answers have least."""
    total: Counter[str] = Counter()
    for counts in audit.role_characters.values():
        total += counts
    if len(total) < 2:
        return "share per role: the chat template does not tell"
    lines = [f"share per role, in characters: {shares(total)}"]
    known = {task: counts for task, counts in audit.role_characters.items() if counts.total()}
    least = sorted(known, key=lambda task: known[task]["assistant"] / known[task].total())[:MOST_TASKS]
    lines += [f"  {task}: {shares(known[task])}" for task in least]
    if len(known) > len(least):
        num_more = len(known) - len(least)
        lines.append(f"  and {num_more:,} {plural(num_more, 'task')} more with a larger share of answers")
    return "\n".join(lines)


def shares(counts: Counter[str]) -> str:
    """The share of each role in words, the largest first."""
    return ", ".join(f"{role} {count / counts.total():.1%}" for role, count in counts.most_common())


def format_languages(audit: Audit) -> str:
    """About how many tokens stand in fences of each language, with the task that has most of them."""
    total: Counter[str] = Counter()
    for counts in audit.fence_tokens.values():
        total += counts
    if not total:
        return "tokens in fences: none"
    lines = ["tokens in fences, by language (about)"]
    for language, count in total.most_common(MOST_LANGUAGES):
        task = max(audit.fence_tokens, key=lambda name: audit.fence_tokens[name][language])
        lines.append(f"  {language[:20]:<20} {count:>13,}  most in {task} ({audit.fence_tokens[task][language]:,})")
    if len(total) > MOST_LANGUAGES:
        num_more = len(total) - MOST_LANGUAGES
        lines.append(f"  and {num_more:,} {plural(num_more, 'language')} more (--json has all)")
    return "\n".join(lines)


def quoted(text: str) -> str:
    """A text on one line, its beginning if it is long."""
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    return '"' + shown.replace("\n", "\\n").replace("\t", "\\t").translate(CONTROL_PICTURES) + '"'
