"""Looks for what may be wrong with the conversations of a finished dataset."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from mft_data.audit.findings import Audit, Place
from mft_data.audit.markers import role_markers
from mft_data.audit.repeats import ANSWER_TOKENS, OPENING_TOKENS, Repeats, frequent_opening, repeated_prompts
from mft_data.audit.streams import read_segments
from mft_data.audit.text_checks import TextChecks
from mft_data.audit.token_checks import TokenChecks, last_span_starts
from mft_data.dataset.dataset_dir import read_manifest
from mft_data.dataset.mds import read_row
from mft_data.display.audit_text import format_audit
from mft_data.encoding.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tokenizers import Tokenizer

    from mft_data.audit.findings import Finding
    from mft_data.audit.streams import Segments

# So many conversations at most are read as text, evenly spaced over the dataset.
MOST_TEXTS = 100_000
DECODED_TOGETHER = 1000


def audit_text(dataset_dir: Path, *, as_json: bool) -> str:
    """What an audit finds, for reading or as JSON; raises DataError."""
    audit = audit_dataset(dataset_dir, read_manifest(dataset_dir))
    return orjson.dumps(audit.document()).decode() if as_json else format_audit(audit)


def audit_dataset(dataset_dir: Path, manifest: dict[str, Any]) -> Audit:
    """What is found in all tasks and splits of a dataset; raises DataError."""
    tokenizer = open_tokenizer(dataset_dir / "tokenizer")
    special_ids = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    checks = TokenChecks(special_ids, token_lengths(tokenizer, special_ids))
    repeats = Repeats()
    texts = TextChecks(dataset_markers(dataset_dir))
    total = sum(counts["conversations"] for task in manifest["tasks"] for counts in task["splits"].values())
    step = max(1, -(-total // MOST_TEXTS))
    audit = Audit(checks.num_conversations)
    num_seen = 0
    for segments in read_segments(dataset_dir, manifest):
        checks.add(segments)
        repeats.add(segments)
        chosen = range(-num_seen % step, len(segments.rows), step)
        num_seen += len(segments.rows)
        audit.num_read_as_text += len(chosen)
        add_texts(texts, tokenizer, segments, chosen)
    audit.little_supervised = with_total(checks.little.values(), checks.num_conversations)
    audit.lost_stop_tokens = with_total(checks.lost.values(), checks.num_conversations)
    for task, hashes in repeats.by_task().items():
        audit.repeated_prompts += filter(None, [repeated_prompts(task, hashes)])
        audit.openings += filter(None, [frequent_opening(task, hashes, hashes.openings)])
        audit.answer_openings += filter(None, [frequent_opening(task, hashes, hashes.answer_openings)])
    for finding in audit.openings:
        finding.what = opening_text(dataset_dir, tokenizer, finding, of_answer=False)
    for finding in audit.answer_openings:
        finding.what = opening_text(dataset_dir, tokenizer, finding, of_answer=True)
    audit.encodings = with_total(texts.signs.values(), texts.num_texts)
    audit.longest_tokens = [
        (tokenizer.decode([token]), count, place) for token, count, place in checks.longest_tokens()
    ]
    audit.role_characters, audit.fence_tokens = texts.role_characters, texts.fence_tokens
    return audit


def with_total(findings: Iterable[Finding], totals: Mapping[str, int]) -> list[Finding]:
    """The findings, each told how many conversations of its task were looked at."""
    return [replace(finding, total=totals[finding.task]) for finding in findings]


def token_lengths(tokenizer: Tokenizer, special_ids: set[int]) -> np.ndarray:
    """The characters that the text of each id has, 0 for special tokens: (ids,) int64."""
    ids = sorted(set(tokenizer.get_vocab(with_added_tokens=True).values()) - special_ids)
    lengths = np.zeros(max([*ids, *special_ids]) + 1, np.int64)
    texts = tokenizer.decode_batch([[token] for token in ids], skip_special_tokens=False)
    lengths[ids] = [len(text) for text in texts]
    return lengths


def dataset_markers(dataset_dir: Path) -> dict[str, str]:
    """What the dataset's chat template writes before the content of each role; empty if that cannot be told."""
    tokenizer_dir = dataset_dir / "tokenizer"
    template = (tokenizer_dir / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    variables = {
        name: token if isinstance(token, str) else token["content"] for name in names if (token := config.get(name))
    }
    return role_markers(template, variables)


def add_texts(texts: TextChecks, tokenizer: Tokenizer, segments: Segments, chosen: range) -> None:
    """Decodes some conversations of a shard, and looks at their texts."""
    for first in range(0, len(chosen), DECODED_TOGETHER):
        positions = chosen[first : first + DECODED_TOGETHER]
        ids = [segments.input_ids[segments.bounds[p] : segments.bounds[p + 1]].tolist() for p in positions]
        for position, own, text in zip(
            positions, ids, tokenizer.decode_batch(ids, skip_special_tokens=False), strict=True
        ):
            texts.add(segments.place(position), text, len(own))


def opening_text(dataset_dir: Path, tokenizer: Tokenizer, finding: Finding, *, of_answer: bool) -> str:
    """What the conversations of a finding, or their last answers, begin with."""
    place: Place = finding.examples[0]
    row = read_row(dataset_dir / place.split / place.task, place.row)
    end = int(row["segment_lengths"][: place.segment].sum())
    start = end - int(row["segment_lengths"][place.segment - 1])
    ids, mask = row["input_ids"][start:end], row["loss_mask"][start:end]
    answer = int(last_span_starts(mask, np.array([0, end - start]))[0])
    shown = ids[answer : answer + ANSWER_TOKENS] if of_answer else ids[: min(answer, OPENING_TOKENS)]
    return tokenizer.decode(shown.tolist(), skip_special_tokens=False)
