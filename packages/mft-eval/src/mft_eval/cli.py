"""The command line."""

import click

from mft_eval.command_line import judging, results


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="mft-eval")
def main() -> None:
    """pass@k of generated programs, executed in a sandbox."""


for _command in (
    judging.problems,
    judging.score,
    results.join,
    results.compare,
    results.show,
    results.report,
    results.convert,
    judging.reproduce,
    results.text,
    judging.doctor,
):
    main.add_command(_command)
