"""Options that several commands share."""

import os

import click

from mft_eval.command_line.parameter_types import FLOOR

WORKERS = click.option(
    "--workers", type=click.IntRange(1), default=len(os.sched_getaffinity(0)), help="Programs judged at a time."
)
TIMEOUT = click.option(
    "--timeout", type=click.FloatRange(0.1, 3600), default=10.0, help="Seconds that a program may take."
)
MEMORY = click.option("--memory-mb", type=click.IntRange(64, 65536), default=1024, help="MiB that a program may use.")
TABLE_FORMAT = click.option(
    "--format", "style", type=click.Choice(["table", "markdown", "json"]), default="table", help="Of stdout."
)
KIND = click.option(
    "--kind",
    type=click.Choice(["plain", "fim", "tests", "translate", "explain"]),
    default="plain",
    help="The task that was asked for; repairs are scored as plain.",
)
EXPLANATIONS = click.option(
    "--explanations", metavar="FILE", help="For explain: the explanations that programs are written from."
)
FAIL_UNDER = click.option(
    "--fail-under", "floors", type=FLOOR, multiple=True, help="Exit with 3 where a score is lower: pass@1=0.30."
)
ISOLATION = click.option(
    "--isolation",
    type=click.Choice(["strict", "best-effort", "none"]),
    default="strict",
    help="Refuse where a layer of the sandbox is missing, go on with what the machine has, or run without a sandbox.",
)
