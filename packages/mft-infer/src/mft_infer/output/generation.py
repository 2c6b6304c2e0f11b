"""One generation: what a model made of a prompt, and the line of JSON that tells it."""

from dataclasses import dataclass
from typing import Any

import orjson

OPTIONAL = ("error", "token_ids", "logprobs")
# What other readers of samples call the problem, and an answer that is a whole solution and no continuation.
FORMATS = {
    "generations": ("problem_id", "completion"),
    "human-eval": ("task_id", "completion"),
    "evalplus": ("task_id", "solution"),
}


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model made of a prompt; `num_tokens` counts the tokens generated, the stop token among them.

    `finish_reason` is "stop", "length" or "error"; only with "error" is there an `error`, which says what was wrong.
    `token_ids` and their `logprobs`, natural logarithms, are there if they were asked for.
    """

    text: str
    finish_reason: str
    num_tokens: int
    error: str | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A completion with its place: the prompt's `problem_id` and digest, and which of its samples it is."""

    problem_id: str
    sample_index: int
    prompt_sha256: str
    is_chat: bool  # whether it answers messages and does not continue a raw prompt
    completion: Completion

    @property
    def key(self) -> tuple[str, int]:
        """What no other generation of a file has."""
        return self.problem_id, self.sample_index


def failed(error: str) -> Completion:
    """The completion of a prompt that cannot be answered: empty, so that whoever judges it counts it as wrong."""
    return Completion("", "error", 0, error)


def to_line(generation: Generation, run: dict[str, Any], sample_format: str) -> bytes:
    """The line of a generation in one of FORMATS; `run` is what made it."""
    completion = generation.completion
    id_name, text_name = FORMATS[sample_format]
    record = {
        id_name: generation.problem_id,
        "sample_index": generation.sample_index,
        text_name if generation.is_chat else "completion": completion.text,
        "finish_reason": completion.finish_reason,
        "num_tokens": completion.num_tokens,
        **{name: getattr(completion, name) for name in OPTIONAL if getattr(completion, name) is not None},
        "prompt_sha256": generation.prompt_sha256,
        "run": run,
    }
    return orjson.dumps(record) + b"\n"
