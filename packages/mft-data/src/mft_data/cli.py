"""The command line: parses, calls one use-case, prints."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mft_data.errors import DataError
from mft_data.option_values import (
    parse_fields,
    parse_max_rejects,
    parse_part,
    parse_record_format,
    parse_role_markers,
    parse_template,
)


@contextmanager
def system_errors() -> Iterator[None]:
    """Turns a failing file system into one line; click itself ends quietly when stdout is closed."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError.of_system(error) from error


def echo_styled(text: str) -> None:
    """Prints text with its colours on a terminal, without them elsewhere and where NO_COLOR is set."""
    click.echo(text, color=False if os.environ.get("NO_COLOR") else None)


def echo_summary(manifest: dict[str, Any]) -> None:
    """Prints on stderr what a dataset holds, and what of its sources it does not."""
    from mft_data.display.summary import summary_table, unused_fields_lines

    for text in (summary_table(manifest), *unused_fields_lines(manifest)):
        click.echo(text, err=True)


# How conversations become tokens.
ENCODING_OPTIONS = (
    click.option(
        "--tokenizer",
        "tokenizer_dir",
        metavar="DIR",
        required=True,
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Folder of the base model or of its tokenizer.",
    ),
    click.option("--seq-length", type=click.IntRange(min=2), default=2048, show_default=True, help="Tokens of a row."),
    click.option(
        "--template",
        metavar="mft|mftcoder|tokenizer|FILE",
        default="mft",
        show_default=True,
        callback=parse_template,
        help="Text around the turns: mft's, that of MFTCoder 0.5, the tokenizer's own chat template, or a Jinja chat "
        "template in a file.",
    ),
    click.option("--eos-token", metavar="TOK", help="Stop token after each bot turn.  [default: the tokenizer's]"),
    click.option(
        "--role-marker",
        "role_markers",
        metavar="ROLE=TEXT",
        multiple=True,
        callback=parse_role_markers,
        help=r"Text before a role's content, with \n for a newline.  [default: <s>ROLE\n]",
    ),
    click.option(
        "--format",
        "record_format",
        metavar="SHAPE",
        default="auto",
        show_default=True,
        callback=parse_record_format,
        help="Shape of the records: chat_rounds, messages, conversations, text, chosen/rejected, or the fields of a "
        "question and its answer, such as prompt/response; "
        "auto looks at each file's first one.",
    ),
    click.option(
        "--field",
        "fields",
        metavar="FIELD=NAME",
        multiple=True,
        callback=parse_fields,
        help="Read a field of the records under another name, such as problem=prompt.",
    ),
    click.option(
        "--train-on",
        type=click.Choice(["all", "last"]),
        default="all",
        show_default=True,
        help="Bot turns to learn: all, or only the last of a conversation.",
    ),
)


def encoding_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with ENCODING_OPTIONS, which `build` and `preview` share."""
    for option in reversed(ENCODING_OPTIONS):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mft-data")
def main() -> None:
    """Turn JSONL conversations into packed, masked datasets for multi-task fine-tuning."""


@main.command("build")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.argument("out")
@encoding_options
@click.option(
    "--validation",
    "validation_fraction",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.02,
    show_default=True,
    help="Fraction of conversations held out.",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    help="Conversations of a task at most, chosen by what they say.  [default: all]",
)
@click.option(
    "--packing",
    type=click.Choice(["best-fit", "none"]),
    default="best-fit",
    show_default=True,
    help="How conversations share rows.",
)
@click.option(
    "--overlong",
    type=click.Choice(["drop", "truncate", "error"]),
    default="drop",
    show_default=True,
    help="What to do with conversations longer than a row.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Decides which conversations meet, and row order.",
)
@click.option(
    "--max-rejects",
    metavar="N|P%",
    default="0",
    show_default=True,
    callback=parse_max_rejects,
    help="Bad records to leave out before giving up.",
)
@click.option(
    "--validation-source",
    "validation_sources",
    metavar="NAME=PATH",
    multiple=True,
    help="Validation data of the task NAME, whose other source is then for training only.",
)
@click.option(
    "--dedup",
    type=click.Choice(["none", "exact", "near"]),
    default="none",
    show_default=True,
    help="Drop conversations that repeat an earlier one of the build.",
)
@click.option(
    "--decontaminate",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Problems (JSONL) that no conversation may share ten words in a row with.",
)
@click.option(
    "--contaminated",
    type=click.Choice(["drop", "report"]),
    default="drop",
    show_default=True,
    help="What to do with conversations that do.",
)
@click.option("--workers", "num_workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Who works: processes here, or the Ray cluster of RAY_ADDRESS.",
)
@click.option("--part", metavar="I/N", callback=parse_part, help="Build only part I of N, for mft-data join.")
@click.option("--strict-fields", "is_strict", is_flag=True, help="Refuse records with fields that would not be used.")
@click.option("--resume", "is_resume", is_flag=True, help="Go on with a build that was not finished.")
@click.option("--overwrite", "is_overwrite", is_flag=True, help="Replace the dataset at OUT, and an unfinished one.")
def build_command(sources: tuple[str, ...], out: str, **options: Any) -> None:
    """Build the dataset OUT from task folders.

    SOURCE is a folder (the task takes its name) or NAME=PATH, a folder or a file, or the only one is a tasks file that
    ends in .yaml. Data files end in .jsonl, .jsonl.gz, .jsonl.zst, .json, .parquet or .arrow. OUT is a folder or a
    location such as s3://bucket/dataset.
    """
    from mft_data.commands.build import RunOptions, build
    from mft_data.dataset.output import output_at
    from mft_data.execution.plan import BuildOptions

    run_names = ("num_workers", "engine", "part", "is_resume", "is_overwrite")
    run = RunOptions(**{name: options.pop(name) for name in run_names})
    with system_errors():
        build_options = BuildOptions(**options)
        manifest = build(list(sources), output_at(out), build_options, run)
        if manifest is not None:
            echo_summary(manifest)
        click.echo(out)


@main.command("join")
@click.argument("parts", metavar="PART...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("out")
@click.option(
    "--max-rejects",
    metavar="N|P%",
    callback=parse_max_rejects,
    help="Bad records that the parts may have left out together.  [default: what they were built with]",
)
@click.option("--overwrite", "is_overwrite", is_flag=True, help="Replace the dataset at OUT.")
def join_command(parts: tuple[Path, ...], out: str, max_rejects: Any, is_overwrite: bool) -> None:
    """Join the parts of a build, made with --part, into OUT."""
    from mft_data.commands.join import join
    from mft_data.dataset.output import output_at

    with system_errors():
        manifest = join(list(parts), output_at(out), is_overwrite, max_rejects)
        echo_summary(manifest)
        click.echo(out)


@main.command("inspect")
@click.argument("dataset_dir", metavar="DATASET", type=click.Path(path_type=Path))
@click.option("--task", help="Task of the row to show.")
@click.option("--row", type=click.IntRange(min=0), help="Position of the row to show, from 0.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation"]),
    default="train",
    show_default=True,
    help="Split of the row to show.",
)
@click.option("--audit", "is_audit", is_flag=True, help="Look for what may be wrong with the conversations.")
@click.option(
    "--html",
    "html_path",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write counts, audit and some rows as one page.",
)
@click.option("--overwrite", "is_overwrite", is_flag=True, help="Replace the FILE of --html.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(
    dataset_dir: Path,
    task: str | None,
    row: int | None,
    split: str,
    is_audit: bool,
    html_path: Path | None,
    is_overwrite: bool,
    as_json: bool,
) -> None:
    """Show what DATASET holds, a row of it, or what may be wrong.

    What it holds are the counts of each task and how long its conversations are. A row's supervised text
    stands in ⟦ ⟧, special tokens with their id in ⟨ ⟩.
    """
    from mft_data.commands import inspect_dataset

    if (task is None) != (row is None):
        raise click.UsageError("--task and --row go together")
    if (row is not None) + is_audit + (html_path is not None) > 1 or (html_path and as_json):
        raise click.UsageError("a row, --audit and --html are shown one at a time, --html without --json")
    with system_errors():
        if task is not None and row is not None:
            echo_styled(inspect_dataset.row_text(dataset_dir, task, split, row, as_json=as_json))
        elif is_audit:
            from mft_data.commands.audit_dataset import audit_text

            click.echo(audit_text(dataset_dir, as_json=as_json))
        elif html_path is not None:
            from mft_data.commands.inspect_page import write_page

            write_page(dataset_dir, html_path, is_overwrite=is_overwrite)
            click.echo(html_path)
        else:
            click.echo(inspect_dataset.dataset_text(dataset_dir, as_json=as_json))


@main.command("preview")
@click.argument("source", metavar="SOURCE")
@encoding_options
@click.option(
    "--rows",
    "num_conversations",
    metavar="N",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Conversations to show.",
)
def preview_command(source: str, **options: Any) -> None:
    """Show how the first conversations of SOURCE would be encoded.

    SOURCE is a folder, NAME=PATH, or a tasks file. Supervised text stands in ⟦ ⟧, special tokens with their id in ⟨ ⟩.
    """
    from mft_data.commands.preview import preview

    with system_errors():
        for shown_conversation in preview(source, **options):
            echo_styled(shown_conversation)


@main.command("verify")
@click.argument("dataset_dir", metavar="DATASET", type=click.Path(path_type=Path))
@click.option("--quick", "is_quick", is_flag=True, help="Compare sizes and counts only, without reading the shards.")
def verify_command(dataset_dir: Path, is_quick: bool) -> None:
    """Check that DATASET is as it was built, to the last byte.

    Every row has to keep to the format, too. Prints an error for each problem, or the path of DATASET.
    """
    from mft_data.commands.verify import describe, find_problems, load_manifest

    with system_errors():
        manifest = load_manifest(dataset_dir)
        has_problems = False
        for problem in find_problems(dataset_dir, manifest, is_quick):
            problem.show()
            has_problems = True
        if has_problems:
            raise SystemExit(1)
        click.echo(describe(manifest, is_quick), err=True)
        click.echo(dataset_dir)
