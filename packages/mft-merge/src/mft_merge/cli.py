"""The command line of mft-merge: parses, calls the merge once, prints the path of the result."""

from pathlib import Path

import click

from mft_merge.errors import MergeError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mft-merge")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="Directory of the base model; without it, the one that the adapter names.",
)
@click.option(
    "--dtype",
    type=click.Choice(["keep", "float32", "bfloat16", "float16"]),
    default="keep",
    show_default=True,
    help="Type of the stored weights; keep is each base tensor's own.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT where it is a model directory already.")
def main(adapter: Path, out: Path, base: Path | None, dtype: str, overwrite: bool) -> None:
    """Fold the LoRA adapter directory ADAPTER into its base model and write the Hugging Face model directory OUT."""
    from mft_merge.merge import merge

    try:
        merge(adapter, out, base_dir=base, dtype=dtype, overwrite=overwrite)
    except OSError as error:
        raise MergeError(error.strerror or str(error), where=error.filename and str(error.filename)) from error
    click.echo(out)
