"""Generation over a file of prompts: what is missing is asked of the engine and written as it comes."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click

from mft_infer.decoding.budget import Budget
from mft_infer.engines.local import LocalEngine
from mft_infer.engines.openai import OpenAIEngine
from mft_infer.engines.request import Engine, Request
from mft_infer.engines.vllm import VLLMEngine
from mft_infer.errors import InferError
from mft_infer.model.fingerprint import fingerprint
from mft_infer.model.generation_defaults import with_defaults
from mft_infer.model.language_model import load_language_model
from mft_infer.model.model_dir import find_model
from mft_infer.model.text_processor import TextProcessor, load_text_processor
from mft_infer.output.generation import Generation, to_line
from mft_infer.output.generations_file import GenerationsFile, Key, check_out, is_stream, naming
from mft_infer.output.in_order import in_order
from mft_infer.output.resume import finished_lines
from mft_infer.output.run_record import run_record
from mft_infer.prompts.records import Prompt, read_prompts
from mft_infer.settings import AnswerSettings, ModelSettings, PromptSettings


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """The options of `mft-infer generate`, under the names that they have there."""

    model: ModelSettings
    answer: AnswerSettings
    prompt: PromptSettings
    given: frozenset[str]
    generation_config: bool
    engine: str
    base_url: str | None
    concurrency: int
    batch_size: int
    batch_tokens: int
    num_samples: int
    format: str
    part: tuple[int, int] | None
    unordered: bool
    strict: bool
    resume: bool
    overwrite: bool


def generate_file(model: str, prompts_path: Path, out_path: Path, options: GenerateOptions) -> None:
    """Complete the prompts at `prompts_path` with `model` and write the generations to `out_path`; "-" is stdout."""
    is_stdout = str(out_path) == "-"
    if is_stdout and sys.stdout is None:
        raise InferError("stdout is closed", fix="name a file to write to")
    if not is_stdout:
        check_out(out_path, overwrite=options.overwrite, resume=options.resume)
        if out_path.exists() and prompts_path.exists() and out_path.samefile(prompts_path):
            raise InferError(f"{out_path} holds the prompts", fix="choose another OUT")
    prompts = _part(_read(prompts_path), options.part)
    engine, run = ENGINES[options.engine](model, options)
    engine.check(prompts)
    requests = [Request(prompt, index) for prompt in prompts for index in range(options.num_samples)]
    if is_stdout:
        _write_stream(engine, requests, run, sys.stdout.buffer, options)
    elif is_stream(out_path):
        with naming(out_path), out_path.open("wb") as stream:
            _write_stream(engine, requests, run, stream, options)
    else:
        _write_file(engine, requests, run, out_path, options)


def _local_engine(model: str, options: GenerateOptions) -> tuple[Engine, dict[str, Any]]:
    """The model in this process, and what its lines tell of it."""
    language_model = load_language_model(model, options.model)
    answer = _answer_settings(language_model, options)
    budget = Budget(options.batch_size, options.batch_tokens)
    engine = LocalEngine(language_model, answer, options.prompt, budget)
    loaded = {"dtype": language_model.dtype, "quantization": options.model.quantization}
    return engine, _run_record(model, language_model, answer, options, loaded)


def _vllm_engine(model: str, options: GenerateOptions) -> tuple[Engine, dict[str, Any]]:
    """The model in vLLM, and what its lines tell of it."""
    processor = load_text_processor(model, find_model(model, options.model.base))
    answer = _answer_settings(processor, options)
    engine = VLLMEngine(processor, options.model, answer, options.prompt, options.batch_size)
    return engine, _run_record(model, processor, answer, options, {"dtype": engine.dtype, "quantization": None})


def _server_engine(model: str, options: GenerateOptions) -> tuple[Engine, dict[str, Any]]:
    """A server, of which no more is known than its name for the model."""
    _check_samples(options.answer, options.num_samples)
    engine = OpenAIEngine(model, options.base_url or "", options.answer, options.prompt, options.concurrency)
    return engine, run_record("openai", model, None, _settings(options.answer, options.prompt))


ENGINES = {"transformers": _local_engine, "vllm": _vllm_engine, "openai": _server_engine}


def _answer_settings(processor: TextProcessor, options: GenerateOptions) -> AnswerSettings:
    """The settings of answers, those of the model's generation config among them where they are wanted."""
    defaults = processor.generation_defaults
    answer = with_defaults(options.answer, defaults, given=options.given, wanted=options.generation_config)
    _check_samples(answer, options.num_samples)
    return answer


def _run_record(
    model: str, processor: TextProcessor, answer: AnswerSettings, options: GenerateOptions, loaded: dict[str, Any]
) -> dict[str, Any]:
    settings = _settings(answer, options.prompt) | loaded
    return run_record(options.engine, model, fingerprint(processor.sources, processor.config), settings)


def _check_samples(answer: AnswerSettings, num_samples: int) -> None:
    if num_samples > 1 and answer.temperature == 0:
        raise InferError("--num-samples above 1 needs a --temperature above 0", fix="greedy samples are all the same")


def _settings(answer: AnswerSettings, prompt: PromptSettings) -> dict[str, Any]:
    """The settings that a text depends on, as every line tells them."""
    settings = asdict(answer) | {"stop": list(answer.stop), "stop_token": list(answer.stop_token)}
    added = {"system": prompt.system, "template_argument": dict(prompt.template_argument)}
    return settings | added


def _read(path: Path) -> list[Prompt]:
    if str(path) == "-":
        return read_prompts(sys.stdin.buffer, "<stdin>")
    with path.open("rb") as stream:
        return read_prompts(stream, str(path))


def _part(prompts: list[Prompt], part: tuple[int, int] | None) -> list[Prompt]:
    """The share of the prompts of part I of N, counted from 1; the shares of all parts in turn are the prompts."""
    if part is None:
        return prompts
    index, count = part
    return prompts[len(prompts) * (index - 1) // count : len(prompts) * index // count]


def _write_stream(
    engine: Engine, requests: list[Request], run: dict[str, Any], stream: BinaryIO, options: GenerateOptions
) -> None:
    """Write each generation as soon as those before it are there, or as it is done."""
    generations = _generations(engine, requests, strict=options.strict)
    if not options.unordered:
        generations = in_order(generations, [_key(request) for request in requests])
    with _counted(len(requests), is_begun=False) as count:
        for generation in generations:
            stream.write(to_line(generation, run, options.format))
            stream.flush()
            count(generation)


def _write_file(
    engine: Engine, requests: list[Request], run: dict[str, Any], path: Path, options: GenerateOptions
) -> None:
    """Append each generation as it is done; when all are there, put the file in the order of the prompts."""
    digests = {_key(request): request.prompt.sha256 for request in requests}
    lines = finished_lines(path, digests, run, options.format) if options.resume else {}
    missing = [request for request in requests if _key(request) not in lines]
    if lines:
        click.echo(f"{len(lines)} of {len(requests)} completions are there already", err=True)
    with GenerationsFile(path, empty=not options.resume) as file:
        if options.resume:
            file.replace(lines.values())
        with _counted(len(missing), is_begun=bool(lines)) as count:
            for generation in _generations(engine, missing, strict=options.strict):
                lines[generation.key] = to_line(generation, run, options.format)
                file.append(lines[generation.key])
                count(generation)
        if not options.unordered:
            file.replace(lines[key] for key in digests)


def _key(request: Request) -> Key:
    return request.prompt.problem_id, request.sample_index


def _generations(engine: Engine, requests: list[Request], *, strict: bool) -> Iterator[Generation]:
    """The generations of the requests as they are done; the first with an error is raised if `strict`."""
    for request, completion in engine.complete(requests):
        if strict and completion.error is not None:
            raise InferError(f'{completion.error}, at problem "{request.prompt.problem_id}"')
        prompt = request.prompt
        yield Generation(
            prompt.problem_id, request.sample_index, prompt.sha256, prompt.messages is not None, completion
        )


@contextmanager
def _counted(total: int, *, is_begun: bool) -> Iterator[Callable[[Generation], None]]:
    """A function to be called with each generation, which shows progress; at the end the sums are told.

    Raises InferError if there were errors alone, unless an earlier run has had answers (`is_begun`).
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    progress = Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    start = time.monotonic()
    num_tokens = 0
    errors: Counter[str] = Counter()
    task = progress.add_task("generating", total=total)

    def count(generation: Generation) -> None:
        nonlocal num_tokens
        num_tokens += generation.completion.num_tokens
        errors[generation.completion.error or ""] += 1
        progress.advance(task)

    with progress:
        yield count
    seconds = time.monotonic() - start
    rate = num_tokens / max(seconds, 1e-9)
    click.echo(f"{errors.total()} completions, {num_tokens} tokens in {seconds:.1f} s, {rate:.1f} tokens/s", err=True)
    num_answered = errors.pop("", 0)
    _tell_errors(errors)
    if errors and not num_answered and not is_begun:
        raise InferError("no prompt could be answered")


def _tell_errors(errors: Counter[str]) -> None:
    """Say how many completions are errors, and the commonest of them."""
    if not errors:
        return
    click.echo(f"{errors.total()} of them are errors:", err=True)
    for error, number in errors.most_common(5):
        click.echo(f"  {number} x {error}", err=True)
    if len(errors) > 5:
        click.echo(f"  and {len(errors) - 5} other errors", err=True)
