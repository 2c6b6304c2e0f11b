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
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Ranks on this machine.")
@click.option("--resume", is_flag=True, help="Continue from the latest checkpoint in the output directory.")
@click.option("--overwrite", is_flag=True, help="Delete an earlier run in the output directory first.")
def launch(config: Path, overrides: tuple[str, ...], processes: int, resume: bool, overwrite: bool) -> None:
    """Train as CONFIG (a YAML file) says, and print the path of the final model.

    Keys of the file can be set on the command line: `mft-train launch run.yaml max_steps=10 lora.rank=8`.
    """
    from mft_train.config_file import read_config
    from mft_train.launch import launch as start

    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    flags = ["--resume"] * resume + ["--overwrite"] * overwrite
    settings = read_config(config, overrides)
    arguments = ["launch", str(config), *overrides, *flags]
    try:
        with stdout_to_stderr():
            final = start(settings, arguments, processes, is_resume=resume, is_overwrite=overwrite)
    except OSError as error:
        raise TrainError(str(error)) from error
    if os.environ.get("RANK", "0") == "0":
        click.echo(final)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends what libraries and child processes print on stdout to stderr: stdout is for the answer."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
