"""The commands that judge programs."""

import click

from mft_eval.command_line.options import EXPLANATIONS, FAIL_UNDER, ISOLATION, KIND, MEMORY, TIMEOUT, WORKERS
from mft_eval.command_line.output import fail_under, write_answer, write_stdout
from mft_eval.command_line.parameter_types import COUNTS, PART
from mft_eval.errors import EvalError


@click.command()
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
@EXPLANATIONS
@WORKERS
@ISOLATION
def problems(problems: str, style: str, kind: str, explanations: str | None, workers: int, isolation: str) -> None:
    """Write the prompts of a problems file as JSONL.

    NAME is humaneval; the prompts go to stdout."""
    from mft_eval.commands.kinds import read_kind
    from mft_eval.commands.problems import write_prompts

    write_stdout(write_prompts(problems, style, read_kind(kind, explanations), workers, isolation))


@click.command()
@click.argument("problems", metavar="NAME|FILE")
@click.argument("generations", metavar="GENERATIONS")
@click.argument("out", metavar="[OUT]", default="-")
@click.option(
    "--k",
    "ks",
    type=COUNTS,
    help="The k of pass@k, such as 1,10; by default those of 1,10,100 that fit.",
)
@TIMEOUT
@MEMORY
@WORKERS
@KIND
@EXPLANATIONS
@ISOLATION
@click.option("--partial", is_flag=True, help="Leave problems without a generation out of the mean.")
@click.option("--allow-broken", is_flag=True, help="Leave problems whose own reference fails out of the mean.")
@click.option("--part", type=PART, default="1/1", help="Which part of the problems to judge, such as 2/4.")
@click.option("--timings", metavar="FILE", help="Write the seconds of every sample to a JSONL FILE.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of OUT.")
@FAIL_UNDER
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
    from mft_eval.judging.isolation import make_pool, settle

    if resume and out == "-":
        raise click.UsageError("--resume needs OUT to be a file.")
    settled = settle(isolation)
    # What judges starts on its own while this process reads code and files.
    with make_pool(settled, workers) as pool:
        from mft_eval.commands.kinds import read_kind
        from mft_eval.commands.score import ScoreOptions, encode_timings
        from mft_eval.commands.score import score as score_generations
        from mft_eval.commands.summary import summary
        from mft_eval.judging.judgement import Limits
        from mft_eval.scoring.artifact import check_output, encode_json, write_file

        if timings is not None:
            check_output(timings, overwrite=overwrite)
        limits = Limits(timeout, memory_mb)
        task_kind = read_kind(kind, explanations)
        options = ScoreOptions(ks, limits, workers, partial, allow_broken, part, overwrite, resume, task_kind, settled)
        results, run = score_generations(problems, generations, out, options, pool)
    if timings is not None:
        write_file(encode_timings(run), timings)
    write_answer(encode_json(results), out)
    run.finish()
    click.echo(summary(results), err=True, nl=False)
    fail_under(results, floors)


@click.command()
@click.argument("problems", metavar="NAME|FILE")
@click.argument("generations", metavar="GENERATIONS")
@click.argument("problem_id", metavar="PROBLEM")
@click.argument("sample_index", metavar="SAMPLE", type=click.IntRange(0))
@TIMEOUT
@MEMORY
@KIND
@EXPLANATIONS
@ISOLATION
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
    isolation: str,
    show_program: bool,
) -> None:
    """Judge one sample by hand and tell all about it.

    Tells the failing call, the error and what the program wrote."""
    from mft_eval.commands.kinds import read_kind
    from mft_eval.commands.reproduce import find_program
    from mft_eval.commands.reproduce import reproduce as reproduce_sample
    from mft_eval.judging.isolation import settle
    from mft_eval.judging.judgement import Limits

    settled = settle(isolation)
    task_kind = read_kind(kind, explanations)
    problem, program = find_program(problems, generations, problem_id, sample_index, task_kind, settled)
    if show_program:
        write_stdout(program.encode("utf-8", "replace"))
    else:
        write_stdout(reproduce_sample(problem, program, Limits(timeout, memory_mb), settled).encode("utf-8", "replace"))


@click.command()
def doctor() -> None:
    """Try the sandbox and look for toolchains.

    Shows its layers, the kernel's settings and the toolchains, and what mends each."""
    from mft_eval.commands.doctor import doctor as look_over

    found, is_sound = look_over()
    write_stdout(found.encode())
    if not is_sound:
        raise EvalError("the sandbox does not hold on this machine", fix="see the table")
