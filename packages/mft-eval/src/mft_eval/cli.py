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
        """The counts; fails for anything else."""
        if isinstance(value, tuple):
            return value
        try:
            counts = sorted({int(part) for part in value.split(",")})
        except ValueError:
            counts = [0]
        if counts[0] < 1:
            self.fail(f'"{value}" is not a list of positive integers such as 1,10', param, ctx)
        return tuple(counts)


class _Part(click.ParamType):
    """`2/4` as (2, 4)."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The part; fails for anything else."""
        if isinstance(value, tuple):
            return value
        which, _, of = value.partition("/")
        if not (which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of)):
            self.fail(f'"{value}" is not a part such as 2/4', param, ctx)
        return int(which), int(of)


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
@click.option("--partial", is_flag=True, help="Leave problems without a generation out of the mean.")
@click.option("--allow-broken", is_flag=True, help="Leave problems whose own reference fails out of the mean.")
@click.option("--part", type=_Part(), default="1/1", help="Which part of the problems to judge, such as 2/4.")
@click.option("--timings", metavar="FILE", help="Write the seconds of every sample to a JSONL FILE.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of OUT.")
def score(
    problems: str,
    generations: str,
    out: str,
    ks: tuple[int, ...] | None,
    timeout: float,
    memory_mb: int,
    workers: int,
    partial: bool,
    allow_broken: bool,
    part: tuple[int, int],
    timings: str | None,
    overwrite: bool,
    resume: bool,
) -> None:
    """Judge GENERATIONS (JSONL, - for stdin) in a sandbox and write the results JSON to OUT (- for stdout)."""
    from mft_eval.commands.score import ScoreOptions, encode_timings
    from mft_eval.commands.score import score as score_generations
    from mft_eval.commands.summary import summary
    from mft_eval.judging.judgement import Limits
    from mft_eval.scoring.artifact import check_output, encode_json, write_file

    if resume and out == "-":
        raise click.UsageError("--resume needs OUT to be a file.")
    if timings is not None:
        check_output(timings, overwrite=overwrite)
    limits = Limits(timeout, memory_mb)
    options = ScoreOptions(ks, limits, workers, partial, allow_broken, part, overwrite, resume)
    results, run = score_generations(problems, generations, out, options)
    if timings is not None:
        write_file(encode_timings(run), timings)
    _write_json(encode_json(results), out)
    run.finish()
    click.echo(summary(results), err=True, nl=False)


def _write_json(content: bytes, out: str) -> None:
    from mft_eval.scoring.artifact import write_file

    if out == "-":
        _write_stdout(content)
    else:
        write_file(content, out)
        _write_stdout(f"{out}\n".encode())


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
