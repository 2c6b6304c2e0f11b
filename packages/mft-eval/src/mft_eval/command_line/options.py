"""Options that several commands share."""

import os

import click

from mft_eval.command_line.parameter_types import Floor

WORKERS = click.option(
    "--workers", type=click.IntRange(1), default=len(os.sched_getaffinity(0)), help="Programs judged at a time."
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
    "--fail-under", "floors", type=Floor(), multiple=True, help="Exit with 3 where a score is lower: pass@1=0.30."
)
ISOLATION = click.option(
    "--isolation",
    type=click.Choice(["strict", "best-effort", "none"]),
    default="strict",
    help="Refuse where a layer of the sandbox is missing, go on with what the machine has, or run without a sandbox.",
)
