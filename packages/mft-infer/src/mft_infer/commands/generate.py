"""Batched generation: every prompt of a file completed in batches of like length, written in the order of the input."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from mft_infer.decoding.decode import Sequence, decode
from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.sampling import request_random
from mft_infer.errors import InferError
from mft_infer.model.language_model import LanguageModel, encode_messages, encode_text, load_language_model
from mft_infer.output.generations import Generation, check_out, written_generations
from mft_infer.prompts.records import Prompt, read_prompts
from mft_infer.settings import AnswerSettings, ModelSettings

# So many batches are sorted by length together; the output follows the input with at most this delay.
WINDOW_BATCHES = 16


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """The options of `mft-infer generate`, under the names that they have there."""

    model: ModelSettings
    answer: AnswerSettings
    batch_size: int
    num_samples: int
    overwrite: bool


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to be made."""

    problem_id: str
    sample_index: int
    prompt_ids: list[int]


def generate_file(model: str, prompts_path: Path, out_path: Path, options: GenerateOptions) -> None:
    """Complete the prompts at `prompts_path` with `model` and write the generations to `out_path`; "-" is a pipe."""
    check_out(out_path, overwrite=options.overwrite)
    if str(prompts_path) == "-":
        prompts = read_prompts(sys.stdin.buffer, "<stdin>")
    else:
        with prompts_path.open("rb") as stream:
            prompts = read_prompts(stream, str(prompts_path))
    language_model = load_language_model(model, options.model)
    requests = [
        Request(prompt.problem_id, sample_index, ids)
        for prompt in prompts
        for ids in [_prompt_ids(language_model, prompt)]
        for sample_index in range(options.num_samples)
    ]
    start = time.monotonic()
    num_tokens = 0
    with written_generations(out_path) as write:
        for generation in generate(language_model, requests, options):
            write(generation)
            num_tokens += generation.num_tokens
    seconds = time.monotonic() - start
    click.echo(
        f"{len(requests)} completions, {num_tokens} tokens in {seconds:.1f} s, {num_tokens / seconds:.1f} tokens/s",
        err=True,
    )


def generate(language_model: LanguageModel, requests: list[Request], options: GenerateOptions) -> Iterator[Generation]:
    """The generations of `requests` in their order."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    progress = Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with progress:
        task = progress.add_task("generating", total=len(requests))
        window = WINDOW_BATCHES * options.batch_size
        for start in range(0, len(requests), window):
            part = requests[start : start + window]
            # Longest first: if memory does not suffice, that shows at once.
            order = sorted(range(len(part)), key=lambda index: -len(part[index].prompt_ids))
            done: dict[int, Generation] = {}
            num_written = 0
            for first in range(0, len(order), options.batch_size):
                indices = order[first : first + options.batch_size]
                batch = [part[index] for index in indices]
                done.update(zip(indices, _generate_batch(language_model, batch, options), strict=True))
                progress.advance(task, len(batch))
                while num_written in done:
                    yield done.pop(num_written)
                    num_written += 1


def _prompt_ids(language_model: LanguageModel, prompt: Prompt) -> list[int]:
    """The ids of a prompt; an error names its problem."""
    try:
        if prompt.messages is not None:
            ids = encode_messages(language_model, prompt.messages)
        else:
            ids = encode_text(language_model, prompt.text)
    except InferError as error:
        raise InferError(f'{error.message}, at problem "{prompt.problem_id}"') from error
    limit = language_model.context_length
    if limit is not None and len(ids) >= limit:
        raise InferError(
            f'the prompt of problem "{prompt.problem_id}" has {len(ids)} tokens, '
            f"the model's context has {limit} for prompt and answer"
        )
    if not ids:
        raise InferError(f'the prompt of problem "{prompt.problem_id}" is empty')
    return ids


def _generate_batch(language_model: LanguageModel, batch: list[Request], options: GenerateOptions) -> list[Generation]:
    import torch

    limit = language_model.context_length
    sequences = [
        Sequence(
            request.prompt_ids,
            max_new_tokens=min(options.answer.max_new_tokens, (limit or sys.maxsize) - len(request.prompt_ids)),
            stop_ids=language_model.stop_ids,
            stop_texts=options.answer.stop,
            random=request_random(options.answer.seed, request.problem_id, request.sample_index),
            detokenizer=Detokenizer(language_model.tokenizer),
        )
        for request in batch
    ]
    try:
        for _ in decode(language_model.model, sequences, options.answer):
            pass
    except torch.OutOfMemoryError as error:
        raise InferError("the device has not enough memory", fix="use a smaller --batch-size") from error
    return [
        Generation(request.problem_id, request.sample_index, sequence.text, sequence.finish_reason, sequence.num_tokens)
        for request, sequence in zip(batch, sequences, strict=True)
    ]
