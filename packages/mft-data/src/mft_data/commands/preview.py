"""Encodes the first conversations of a source as a build would, for reading."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mft_data.display.row_display import format_segment, readable_segment
from mft_data.encoding.choose_template import load_tokenizer_and_template
from mft_data.encoding.encoder import make_encoder, make_tokenizer
from mft_data.encoding.tokenizer import tokenizer_config
from mft_data.errors import DataError, RecordError, plural
from mft_data.execution.plan import check_arguments
from mft_data.reading.fetched import Fetched
from mft_data.reading.lines import read_lines
from mft_data.reading.preferences import SIDES
from mft_data.reading.records import file_format, parse_line
from mft_data.reading.source_settings import SourceSettings
from mft_data.reading.sources import SUFFIXES, find_source
from mft_data.reading.tasks_file import is_tasks_file, read_tasks_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedTokenizerBase

    from mft_data.encoding.template import Template
    from mft_data.reading.conversation import Conversation
    from mft_data.reading.sources import Source


def preview(
    source_argument: str,
    num_conversations: int,
    tokenizer_dir: Path,
    seq_length: int,
    template: str,
    eos_token: str | None,
    role_markers: Mapping[str, str],
    record_format: str | None,
    fields: Mapping[str, str],
    train_on: str,
) -> Iterator[str]:
    """Yields each of the first conversations under its file and line; raises DataError as a build would.

    Of a tasks file, these are the first of every task.
    """
    settings = SourceSettings(record_format=record_format, fields=fields, train_on=train_on)
    with Fetched(SUFFIXES) as fetched:
        if is_tasks_file(source_argument):
            sources = read_tasks_file(Path(source_argument), settings, fetched)
        else:
            sources = [find_source(source_argument, settings, fetched)]
        with tempfile.TemporaryDirectory(prefix="mft-data-") as folder:
            tokenizer, chosen_template = load_tokenizer_and_template(
                tokenizer_dir, template, role_markers, eos_token, Path(folder, "tokenizer")
            )
        for source in sources:
            if source.split != "validation":
                yield from preview_source(source, num_conversations, tokenizer, chosen_template, seq_length)


def preview_source(
    source: Source, num_conversations: int, tokenizer: PreTrainedTokenizerBase, template: Template, seq_length: int
) -> Iterator[str]:
    """Yields each of the first conversations of one source; raises DataError."""
    check_arguments(template, source)
    config = tokenizer_config(tokenizer)
    encoder = make_encoder(config, template)
    decoder = make_tokenizer(config)
    render = encoder.renderer(source.settings)
    num_shown = 0
    for where, conversations in islice(read_source(source, template), num_conversations):
        try:
            batches = [encoder.encode_rendered([render(conversation)]) for conversation in conversations]
        except RecordError as error:
            raise DataError(error.reason, where=where, fix=error.fix) from error
        num_tokens = sum(len(batch.input_ids) for batch in batches)
        for side, batch in zip(SIDES if len(batches) > 1 else ("",), batches, strict=True):
            heading = (
                f"{where}{side and f', {side}'}: {len(batch.input_ids)} {plural(len(batch.input_ids), 'token')}, "
                f"{batch.loss_mask.sum()} supervised"
            )
            if num_tokens > seq_length:
                heading += f", overlong by {num_tokens - seq_length}"
            yield format_segment(heading, readable_segment(decoder, batch.input_ids, batch.loss_mask))
        num_shown += 1
    if not num_shown:
        raise DataError(f'source "{source.paths[0]}" has no conversations')


def read_source(source: Source, template: Template) -> Iterator[tuple[str, tuple[Conversation, ...]]]:
    """File with line, and what each record says; raises DataError for one that a build would refuse."""
    for file in source.files:
        own_format = source.settings.record_format or file_format(file.path, source.settings.fields)
        for line_number, line in read_lines(file.path):
            where = f"{file.path} line {line_number}"
            try:
                yield where, parse_line(line, own_format, source.settings, template.taken_extras).conversations
            except RecordError as error:
                raise DataError(error.reason, where=where, fix=error.fix) from error
