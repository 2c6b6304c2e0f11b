"""The command line."""

import os
import sys
from typing import Any

import click

from mft_eval.errors import EvalError


class _CommaSeparatedCounts(click.ParamType):
    """`1,10` as a sorted tuple of positive integers."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            counts = sorted({int(part) for part in value.split(",")})
        except ValueError:
            counts = [0]
        if counts[0] < 1:
            self.fail(f'"{value}" is not a list of positive integers such as 1,10', param, ctx)
        return tuple(counts)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="mft-eval")
def main() -> None:
    """pass@k of generated programs, executed in a sandbox."""


@main.command()
@click.argument("problems", metavar="NAME|FILE")
@click.option(
    "--style",
    type=click.Choice(["chat", "completion"]),
    default="chat",
    help="Conversation that asks for the function, or raw code to continue.",
)
def problems(problems: str, style: str) -> None:
    """Write the prompts of a benchmark (humaneval) or of a problems FILE to stdout, as JSONL."""
    import orjson

    from mft_eval.problems.prompts import STYLES
    from mft_eval.problems.reading import read_problems

    prompts = [STYLES[style](problem) for problem in read_problems(problems).problems]
    _write_stdout(b"".join(orjson.dumps(prompt, option=orjson.OPT_APPEND_NEWLINE) for prompt in prompts))


@main.command()
@click.argument("problems", metavar="NAME|FILE")
@click.argument("generations", metavar="GENERATIONS")
@click.argument("out", metavar="[OUT]", default="-")
@click.option(
    "--k",
    "ks",
    type=_CommaSeparatedCounts(),
    help="The k of pass@k, such as 1,10; by default those of 1,10,100 that fit.",
)
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=10.0, help="Seconds that a program may take.")
@click.option("--memory-mb", type=click.IntRange(64, 65536), default=1024, help="MiB that a program may use.")
@click.option(
    "--workers", type=click.IntRange(1), default=len(os.sched_getaffinity(0)), help="Programs judged at a time."
)
@click.option("--allow-missing", is_flag=True, help="Leave problems without a generation out of the mean.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def score(
    problems: str,
    generations: str,
    out: str,
    ks: tuple[int, ...] | None,
    timeout: float,
    memory_mb: int,
    workers: int,
    allow_missing: bool,
    overwrite: bool,
) -> None:
    """Judge GENERATIONS (JSONL, - for stdin) in a sandbox and write the results JSON to OUT (- for stdout)."""
    from mft_eval.commands.score import score as score_generations
    from mft_eval.judging.program_judge import Limits
    from mft_eval.scoring.results import check_output, encode_results, write_file

    check_output(out, overwrite=overwrite)
    results = score_generations(
        problems,
        generations,
        ks=ks,
        limits=Limits(timeout, memory_mb),
        num_workers=workers,
        allow_missing=allow_missing,
    )
    content = encode_results(results)
    if out == "-":
        _write_stdout(content)
    else:
        write_file(content, out)
        _write_stdout(f"{out}\n".encode())
    _summarize(results)


def _summarize(results: dict[str, Any]) -> None:
    for name, value in results["pass_at_k"].items():
        click.echo(f"{name}: {value:.4f}", err=True)
    counts = ", ".join(f"{verdict} {count}" for verdict, count in results["verdicts"].items() if count)
    click.echo(f"{len(results['problems'])} problems: {counts}", err=True)
    if results["num_missing"]:
        click.echo(f"{results['num_missing']} problems without a generation were left out", err=True)
    if results["verdicts"]["harness-error"]:
        click.echo("a harness-error is no fault of the program's, yet counts as not passed: see each detail", err=True)


def _write_stdout(content: bytes) -> None:
    """Writes to stdout; a reader that has gone away is no error."""
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # What Python would flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise EvalError(f"cannot write to stdout: {error.strerror}") from error
