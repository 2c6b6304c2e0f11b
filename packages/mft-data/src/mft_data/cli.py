"""The command line: parses, calls one use-case, prints."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mft_data.errors import DataError

ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


@contextmanager
def system_errors() -> Iterator[None]:
    """Turns a failing file system into one line; click itself ends quietly when stdout is closed."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(error.strerror or str(error), where=error.filename and str(error.filename)) from error


def parse_role_markers(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Role to marker text of `ROLE=TEXT` options; `\\n`, `\\t` and `\\\\` in TEXT are escapes."""
    from mft_data.conversation import RESERVED_CHARACTER, ROLES

    markers: dict[str, str] = {}
    for value in values:
        role, separator, text = value.partition("=")
        if not separator or role not in ROLES:
            raise click.BadParameter(f"{value!r} is not ROLE=TEXT with a role of {', '.join(ROLES)}")
        if ROLES[role] in markers:
            raise click.BadParameter(f"role {role} has two markers")
        if RESERVED_CHARACTER in text:
            raise click.BadParameter("the noncharacter U+FDD0 is reserved")
        markers[ROLES[role]] = unescape(text)
    return markers


def unescape(text: str) -> str:
    """`text` with its escapes replaced."""
    characters = iter(text)
    plain = ""
    for character in characters:
        if character == "\\":
            escape = next(characters, "")
            if escape not in ESCAPES:
                raise click.BadParameter(rf"{text!r} has an escape other than \n, \t and \\")
            plain += ESCAPES[escape]
        else:
            plain += character
    return plain


def parse_max_rejects(_context: click.Context, _parameter: click.Parameter, value: str) -> Any:
    """The MaxRejects of `N` or `P%`."""
    from mft_data.records import MaxRejects

    try:
        if value.endswith("%"):
            percent = float(value[:-1])
            if 0 <= percent <= 100:
                return MaxRejects(count=None, percent=percent)
        elif int(value) >= 0:
            return MaxRejects(count=int(value))
    except ValueError:
        pass
    raise click.BadParameter(f"{value!r} is neither a count nor a percentage like 1%")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mft-data")
def main() -> None:
    """Turn JSONL conversations into packed, masked datasets for multi-task fine-tuning."""


@main.command("build")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--tokenizer",
    "tokenizer_dir",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the base model or of its tokenizer.",
)
@click.option("--seq-length", type=click.IntRange(min=2), default=2048, show_default=True, help="Tokens of a row.")
@click.option("--template", type=click.Choice(["mft"]), default="mft", show_default=True, help="Text around the turns.")
@click.option("--eos-token", metavar="TOK", help="Stop token after each bot turn.  [default: the tokenizer's]")
@click.option(
    "--role-marker",
    "role_markers",
    metavar="ROLE=TEXT",
    multiple=True,
    callback=parse_role_markers,
    help=r"Text before a role's content, with \n for a newline.  [default: <s>ROLE\n]",
)
@click.option(
    "--validation",
    "validation_fraction",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.02,
    show_default=True,
    help="Fraction of conversations held out.",
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
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which conversations meet, and row order.")
@click.option(
    "--format",
    "record_format",
    type=click.Choice(["auto", "chat_rounds", "messages", "text"]),
    default="auto",
    show_default=True,
    help="Shape of the records; auto looks at each file's first one.",
)
@click.option(
    "--max-rejects",
    metavar="N|P%",
    default="0",
    show_default=True,
    callback=parse_max_rejects,
    help="Bad records to leave out before giving up.",
)
@click.option("--overwrite", is_flag=True, help="Replace the dataset at OUT.")
def build_command(sources: tuple[str, ...], out: Path, record_format: str, overwrite: bool, **options: Any) -> None:
    """Build the dataset OUT from task folders.

    SOURCE is a folder (the task takes its name) or NAME=PATH, a folder or a file. Files end in .jsonl, .jsonl.gz or
    .jsonl.zst.
    """
    from mft_data.build import BuildOptions, build
    from mft_data.summary import summary_table

    with system_errors():
        build_options = BuildOptions(record_format=None if record_format == "auto" else record_format, **options)
        manifest = build(list(sources), out, build_options, overwrite)
        click.echo(summary_table(manifest), err=True)
        click.echo(out)


@main.command("inspect")
@click.argument("dataset_dir", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--task", help="Task of the row to show.")
@click.option("--row", type=click.IntRange(min=0), help="Position of the row to show.")
@click.option("--split", type=click.Choice(["train", "validation"]), default="train", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(dataset_dir: Path, task: str | None, row: int | None, split: str, as_json: bool) -> None:
    """Show what the dataset OUT holds, or one of its rows.

    A row's supervised text stands in ⟦ ⟧, special tokens with their id in ⟨ ⟩.
    """
    import orjson

    from mft_data.dataset_dir import read_manifest
    from mft_data.inspection import format_row, load_row
    from mft_data.summary import split_summaries, summary_table

    if (task is None) != (row is None):
        raise click.UsageError("--task and --row go together")
    with system_errors():
        if task is not None and row is not None:
            segments = load_row(dataset_dir, task, split, row)
            answer = {"task": task, "split": split, "row": row, "segments": segments}
            click.echo(orjson.dumps(answer) if as_json else format_row(segments))
        else:
            manifest = read_manifest(dataset_dir)
            click.echo(orjson.dumps(split_summaries(manifest)) if as_json else summary_table(manifest))
