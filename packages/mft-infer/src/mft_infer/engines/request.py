"""One completion to be made, and what makes it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from mft_infer.output.generation import Completion
from mft_infer.prompts.records import Prompt


@dataclass(frozen=True, slots=True)
class Request:
    """The sample of this index of a prompt."""

    prompt: Prompt
    sample_index: int


class Engine(Protocol):
    """Answers requests; a prompt that cannot be answered has a completion that says why."""

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raises InferError if the engine cannot answer prompts of this kind at all."""

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        """Each request with its completion, in the order in which they are done."""
