"""The command line: parses, calls one use-case, prints its answer."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from mft_train.errors import TrainError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mft-train", prog_name="mft-train")
def main() -> None:
    """Fine-tune a causal language model on many tasks at once."""


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks on each machine.")
@click.option("--machines", type=click.IntRange(min=1), default=1, show_default=True, help="Machines of the run.")
@click.option("--machine-rank", type=click.IntRange(min=0), metavar="R", help="Which of them this is, from 0.")
@click.option("--main-address", metavar="HOST:PORT", help="Where machine 0 listens; the port is free there.")
@click.option("--print-command", is_flag=True, help="Print the command of each machine instead of running it.")
@click.option("--resume", is_flag=True, help="Continue from the latest checkpoint in the output directory.")
@click.option("--overwrite", is_flag=True, help="Delete an earlier run in the output directory first.")
@click.option(
    "--force",
    is_flag=True,
    help="Go on although the tokenizer is not the model's or, with --resume, data or settings have changed.",
)
def launch(
    config: Path,
    overrides: tuple[str, ...],
    processes: int,
    machines: int,
    machine_rank: int | None,
    main_address: str | None,
    print_command: bool,
    resume: bool,
    overwrite: bool,
    force: bool,
) -> None:
    """Train as CONFIG (a YAML file) says, and print the path of the final model.

    Keys of the file can be set on the command line: `mft-train launch run.yaml max_steps=10 lora.rank=8`.

    On several machines run it on each, with the same --machines and --main-address and its own --machine-rank.
    """
    from mft_train.config.config_file import read_config
    from mft_train.running.machines import Machines, check_usage, printed_commands

    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    asked = Machines(processes, machines, machine_rank, main_address)
    asked = check_usage(asked, os.environ, is_printing=print_command)
    flags = ["--resume"] * resume + ["--overwrite"] * overwrite + ["--force"] * force
    settings = read_config(config, overrides)
    if settings.trust_remote_code and is_first_process():
        click.echo(
            f"trust_remote_code: the Python code that comes with {settings.model} is run with all rights that you have",
            err=True,
        )
    arguments = ["launch", str(config), *overrides, *flags]
    if print_command:
        click.echo(printed_commands(asked, arguments, os.environ))
        return
    from mft_train.running.launch import launch as start

    with one_line_errors(), stdout_to_stderr():
        final = start(settings, arguments, asked, is_resume=resume, is_overwrite=overwrite, is_forced=force)
    if os.environ.get("RANK", "0") == "0":
        click.echo(final)


def is_first_process() -> bool:
    """Whether this is the process that a person started, or the first of those that a launcher of theirs did."""
    from mft_train.running.run_lock import LAUNCHER

    return LAUNCHER not in os.environ and os.environ.get("RANK", "0") == "0"


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks of the run.")
@click.option("--gpu-memory", metavar="SIZE", help="Memory of a GPU, such as 80GB: say how many are needed.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON, sizes in bytes.")
def plan(config: Path, overrides: tuple[str, ...], processes: int, gpu_memory: str | None, is_json: bool) -> None:
    """Print the size, length and memory of the run that CONFIG describes, without loading weights."""
    from mft_train.config.config_file import read_config
    from mft_train.planning.memory import parse_bytes
    from mft_train.planning.plan import to_json, to_text
    from mft_train.running.launch import plan as make_plan

    try:
        gpu_bytes = parse_bytes(gpu_memory) if gpu_memory else None
    except ValueError as error:
        raise click.UsageError(f"--gpu-memory {error}") from error

    settings = read_config(config, overrides)
    with one_line_errors(), stdout_to_stderr():
        planned = make_plan(settings, processes, gpu_bytes)
    click.echo(to_json(planned) if is_json else to_text(planned))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def init(file: Path) -> None:
    """Write a starter config to FILE, every key with its meaning and default, and print its path."""
    from mft_train.config.config_file import write_new_file
    from mft_train.config.starter import starter_text

    with one_line_errors():
        write_new_file(starter_text(), file)
    click.echo(file)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write one HTML page with charts; - prints it."
)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option("--watch", is_flag=True, help="Serve the page on this machine while the run goes on, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to serve it at; 0: any.  [default: 8768]")
def report(run: Path, html: Path | None, overwrite: bool, watch: bool, port: int | None) -> None:
    """Print the losses of RUN, a run directory, by task; or write a page about it and print the page's path.

    With --watch the page's address is printed, and the page follows the run.
    """
    from mft_train.report.report import html_report, text_report, write_report

    if overwrite and html is None:
        raise click.UsageError("--overwrite is for --html FILE")
    if watch and html is not None:
        raise click.UsageError("--watch and --html exclude each other")
    if port is not None and not watch:
        raise click.UsageError("--port is for --watch")
    with one_line_errors():
        if watch:
            serve_report(run, 8768 if port is None else port)
            return
        if html is None:
            click.echo(text_report(run))
            return
        page = html_report(run)
        if html == Path("-"):
            click.echo(page, nl=False)
            return
        write_report(page, html, is_overwrite=overwrite)
    click.echo(html)


def serve_report(run: Path, port: int) -> None:
    """Serves the report until Ctrl-C, which is its ordinary end."""
    from mft_train.report.watch import ReportServer

    with ReportServer(run, port) as server:
        click.echo(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


@main.command()
def schema() -> None:
    """Print the JSON schema of a config."""
    from mft_train.config import starter

    click.echo(starter.schema())


@main.command("import-mftcoder")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--program",
    type=click.Choice(["mft-0.5", "mpt-0.5", "mft-0.3"]),
    default="mft-0.5",
    show_default=True,
    help="The program and version that OLD was for: their defaults differ.",
)
@click.option("--processes", type=click.IntRange(min=1), help="Ranks of the old runs.  [default: as FILE says, or 1]")
@click.option(
    "--accelerate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The config of accelerate that OLD ran with, such as accelerate_ds_config.yaml.",
)
def import_command(old: Path, new: Path, program: str, processes: int | None, accelerate: Path | None) -> None:
    """Convert OLD, a JSON training config of MFTCoder, to NEW, and print its path.

    Keys that have no counterpart here or changed their meaning are listed on stderr.
    """
    from mft_train.config.import_mftcoder import import_mftcoder

    with one_line_errors():
        notes = import_mftcoder(old, new, program, processes, accelerate)
    for key, text in notes:
        click.echo(f"{key}: {text}", err=True)
    click.echo(new)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns an OSError of reading or writing files into one line."""
    try:
        yield
    except OSError as error:
        raise TrainError(str(error)) from error


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends what libraries and child processes print on stdout to stderr: stdout is for the answer.

    If the caller has closed stdout, the answer goes nowhere.
    """
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as this process lives
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
