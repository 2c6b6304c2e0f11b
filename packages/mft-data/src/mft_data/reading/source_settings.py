"""What a build does with the records of one source, as the command line or a tasks file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from mft_data.reading.shapes import KNOWN_FIELDS

# In place of a field's name: conversations that say the same up to their last answer are on one side.
PROMPT_GROUP = "(prompt)"


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """How the records of a source are read, how many of them are taken, and on which side they go."""

    record_format: str | None = None  # None: each file's first record tells
    fields: Mapping[str, str] = field(default_factory=dict)  # what a field of the records is read as
    limit: int | None = None  # conversations at most
    weight: float = 1.0  # multiplies that of every record
    validation_fraction: float = 0.0
    validation_group: str | None = None  # the field whose equals go to the same side, or PROMPT_GROUP
    train_on: str = "all"  # bot turns: all, or only the last
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "conversation"  # or fim: documents to fill in
    fim: Mapping[str, Any] = field(default_factory=dict)  # sentinels, spm, spans, where they are given

    @property
    def group_field(self) -> str | None:
        """The field of a record that tells on which side it goes, if there is one."""
        return None if self.validation_group == PROMPT_GROUP else self.validation_group


def check_fields(fields: Mapping[str, str]) -> None:
    """Raises ValueError unless every field is to be read as one that some shape of records has, and no two as one."""
    for source, target in fields.items():
        if target not in KNOWN_FIELDS:
            near = get_close_matches(target, KNOWN_FIELDS, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(KNOWN_FIELDS)}"
            raise ValueError(f'"{source}" is to be read as "{target}", which no shape of records has ({hint})')
    if len(set(fields.values())) < len(fields):
        raise ValueError("two fields are to be read as the same one")
