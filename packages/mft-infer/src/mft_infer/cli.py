"""The command line of mft-infer: parses, calls one use-case, leaves stdout to the answers."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import orjson

from mft_infer.errors import InferError
from mft_infer.settings import AnswerSettings, ModelSettings, PromptSettings, take


class TemplateArgument(click.ParamType):
    """NAME=VALUE as a pair; the value is JSON where it reads as such, else the text itself."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """The name and the value."""
        name, sign, text = value.partition("=")
        if not sign or not name.isidentifier() or name in TEMPLATE_NAMES:
            self.fail(f"{value!r} is no NAME=VALUE, or the name is one that the template has already", param, ctx)
        try:
            return name, orjson.loads(text)
        except orjson.JSONDecodeError:
            return name, text


class FiniteRange(click.FloatRange):
    """A range of numbers, in which NaN and the infinite, which pass as within any, are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


TEMPLATE_NAMES = {"messages", "tools", "add_generation_prompt", "chat_template", "conversations"}
DTYPE_OPTION = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Type of the weights; auto is float32 on a CPU and the model's own on a GPU.",
)
SHARED_OPTIONS = (
    click.option("--base", help="Base model of an adapter; without it, the one that the adapter names."),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        default=512,
        show_default=True,
        help="Longest answer, in tokens.",
    ),
    click.option(
        "--temperature",
        type=FiniteRange(min=0),
        default=0.0,
        show_default=True,
        help="0 takes the likeliest token.",
    ),
    click.option(
        "--top-p",
        type=FiniteRange(min=0, max=1, min_open=True),
        default=1.0,
        show_default=True,
        help="Sample among the likeliest tokens that hold this probability together.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Sample among so many tokens; 0 is all.",
    ),
    click.option(
        "--min-p",
        type=FiniteRange(min=0, max=1),
        default=0.0,
        show_default=True,
        help="Sample among the tokens with at least this share of the likeliest one's probability.",
    ),
    click.option(
        "--repetition-penalty",
        type=FiniteRange(min=0, min_open=True),
        default=1.0,
        show_default=True,
        help="Divide the scores of tokens that are there already by this.",
    ),
    click.option("--stop", multiple=True, help="Text that ends an answer and is cut off it; can be given many times."),
    click.option(
        "--stop-token", multiple=True, help="Token that ends an answer, its text or its id; can be given many times."
    ),
    click.option(
        "--generation-config",
        is_flag=True,
        help="Use the settings of the model's generation config where the command line has none.",
    ),
    click.option("--system", help="System message of conversations that have none."),
    click.option(
        "--template-argument",
        multiple=True,
        type=TemplateArgument(),
        help="NAME=VALUE: a variable of the chat template, VALUE in JSON or a text; can be given many times.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(-(2**63), 2**63 - 1),  # what JSON's readers take
        default=0,
        show_default=True,
        help="Seed of the sampling.",
    ),
    DTYPE_OPTION,
    click.option(
        "--device", default="auto", show_default=True, help="Torch device; auto is the first GPU, else the CPU."
    ),
    click.option(
        "--quantization", type=click.Choice(["4bit", "8bit"]), help="Round the weights while they are loaded."
    ),
)


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the options that every kind of generation has."""
    for option in reversed(SHARED_OPTIONS):
        command = option(command)
    return command


def check_options(model: str, options: dict[str, Any]) -> None:
    """Refuses what no line of JSON can hold, and an empty stop text, which would end every answer at its beginning."""
    if "" in options["stop"]:
        raise click.UsageError("--stop needs a text")
    names = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    for name, value in {"MODEL": model, **names}.items():
        try:
            orjson.dumps(value)
        except TypeError as error:
            raise click.UsageError(f"{name}: {error}") from error


def given_options() -> frozenset[str]:
    """The names of the options that are on the command line."""
    context = click.get_current_context()
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return frozenset(name for name, source in sources if source is not click.core.ParameterSource.DEFAULT)


def parse_part(text: str | None) -> tuple[int, int] | None:
    """The numbers I and N of a part I/N."""
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise click.UsageError("--part is I/N, as 1/4")
    if not 1 <= int(index) <= int(count):
        raise click.UsageError(f"--part {text} is none of the parts 1/{count} to {count}/{count}")
    return int(index), int(count)


@contextmanager
def file_errors() -> Iterator[None]:
    """Turns a file that cannot be read or written into one line; a closed pipe is left to click, which ends quietly."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InferError(error.strerror or str(error), where=error.filename and str(error.filename)) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mft-infer")
def main() -> None:
    """Generate with a Hugging Face model directory, or with a PEFT adapter directory and its base."""


@main.command(short_help="Complete the prompts of a JSONL file, in batches.")
@click.argument("model")
@click.argument("prompts", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("out", type=click.Path(path_type=Path, allow_dash=True))
@shared_options
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm", "openai"]),
    default="transformers",
    show_default=True,
    help="What answers: transformers or vLLM in this process, or a server with OpenAI's interface.",
)
@click.option("--base-url", help="Address of the server of --engine openai, such as http://localhost:8000/v1.")
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=16, show_default=True, help="Requests at a time to a server."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Completions at a time, at most."
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=32768,
    show_default=True,
    help="Tokens of prompts and completions in the cache at a time; halved when memory runs out.",
)
@click.option(
    "--beams",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Search with so many beams for the likeliest completion.",
)
@click.option("--logprobs", is_flag=True, help="Write the tokens of each completion and their log-probabilities.")
@click.option(
    "--num-samples", type=click.IntRange(min=1), default=1, show_default=True, help="Completions for each problem."
)
@click.option(
    "--format",
    type=click.Choice(["generations", "human-eval", "evalplus"]),
    default="generations",
    show_default=True,
    help="Names of the fields of a line: our own, or those that another reader of samples asks for.",
)
@click.option("--part", help="I/N: do only share I, from 1, of the prompts cut into N shares.")
@click.option("--unordered", is_flag=True, help="Leave the completions in the order in which they were done.")
@click.option("--strict", is_flag=True, help="Stop at the first prompt that cannot be answered.")
@click.option("--resume", is_flag=True, help="Go on with OUT where an earlier run stopped.")
@click.option("--overwrite", is_flag=True, help="Replace OUT where it exists.")
def generate(model: str, prompts: Path, out: Path, part: str | None, **options: Any) -> None:
    """Complete every prompt of the JSONL file PROMPTS and write the completions to the JSONL file OUT; - is a pipe."""
    if options["beams"] > 1 and (options["temperature"] > 0 or options["logprobs"] or options["num_samples"] > 1):
        raise click.UsageError("--beams goes with neither --temperature, --logprobs nor --num-samples")
    if options["num_samples"] > 1 and options["temperature"] == 0 and not options["generation_config"]:
        raise click.UsageError("--num-samples above 1 needs a --temperature above 0: greedy samples are all the same")
    if (options["engine"] == "openai") != (options["base_url"] is not None):
        raise click.UsageError("--engine openai and --base-url go together")
    if options["resume"] and (options["overwrite"] or str(out) == "-"):
        raise click.UsageError("--resume goes on with a file: it takes no --overwrite and no pipe")
    check_options(model, options)
    from mft_infer.commands.generate import GenerateOptions, generate_file

    with file_errors():
        generate_file(
            model,
            prompts,
            out,
            GenerateOptions(
                take(ModelSettings, options),
                take(AnswerSettings, options),
                take(PromptSettings, options),
                given=given_options(),
                part=parse_part(part),
                **options,
            ),
        )


@main.command(short_help="Talk with a model, or with two side by side.")
@click.argument("model")
@shared_options
@click.option("--beside", help="Second model, whose answers stand beside the first one's.")
def chat(model: str, **options: Any) -> None:
    """Talk with MODEL: on a terminal with an editor and commands, from a pipe one message a line."""
    check_options(model, options)
    from mft_infer.commands.chat import ChatOptions
    from mft_infer.commands.chat import chat as talk

    with file_errors():
        model_settings, answers = take(ModelSettings, options), take(AnswerSettings, options)
        prompts = take(PromptSettings, options)
        talk(model, ChatOptions(model_settings, answers, prompts, given=given_options(), **options))


@main.command(short_help="Serve a model with OpenAI's interface.")
@click.argument("model")
@click.option(
    "--server",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="Whose server is started.",
)
@click.option("--host", default="localhost", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen at.")
@DTYPE_OPTION
@click.option("--device", default="auto", show_default=True, help="Torch device of the server of transformers.")
def serve(model: str, **options: Any) -> None:
    """Serve MODEL with OpenAI's interface, for `generate --engine openai` and any other client."""
    from mft_infer.commands.serve import ServeOptions
    from mft_infer.commands.serve import serve as become_server

    become_server(model, ServeOptions(**options))
