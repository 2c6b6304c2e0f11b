"""The command line of mft-merge: parses, calls the merge once, prints the path of the result."""

import re
from math import isfinite, nan
from pathlib import Path
from typing import Any

import click

from mft_merge.errors import MergeError


class SizeType(click.ParamType):
    """A size in bytes, as 5GB, 500MB or 2000000."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes that a text like 5GB means, in powers of 1,000."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", str(value).upper())
        size = round(float(found[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[found[2]]) if found else 0
        if size <= 0:
            self.fail(f"{value!r} is no size, give one as 5GB or 500MB", param, ctx)
        return size


class WeightType(click.ParamType):
    """An adapter directory and its weight, as runs/a/final=0.7."""

    name = "weight"

    def convert(
        self, value: str | tuple[Path, float], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Path, float]:
        """The path and the number."""
        if isinstance(value, tuple):
            return value
        path, _, number = value.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = nan
        if not path or not isfinite(weight):
            self.fail(f"{value!r} is not DIR=WEIGHT, as runs/a/final=0.7", param, ctx)
        return Path(path), weight


class DefaultGroup(click.Group):
    """Commands of which `merge` is meant where none is named: `mft-merge ADAPTER OUT`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command before arguments that name none."""
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help", "--version")):
            args = ["merge", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mft-merge")
def main() -> None:
    """Fold LoRA adapters into their base model: `mft-merge ADAPTER OUT` is `mft-merge merge ADAPTER OUT`."""


@main.command()
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="[ADAPTER] OUT")
@click.option(
    "--adapter",
    "weights",
    type=WeightType(),
    multiple=True,
    metavar="DIR=WEIGHT",
    help="Instead of ADAPTER: one of several, whose updates are added, each times its weight.",
)
@click.option(
    "--combine",
    type=click.Choice(["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]),
    default="linear",
    show_default=True,
    help="How the updates of several adapters become one: added, or by a rule of PEFT's with --density.",
)
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of each update's values that the rule keeps.",
)
@click.option(
    "--seed",
    type=click.IntRange(-(2**63), 2**63 - 1),
    default=0,
    show_default=True,
    help="Chooses the values that DARE keeps.",
)
@click.option(
    "--base",
    metavar="DIR|HUB-ID",
    help="The base model; without it, the one that the adapter names.",
)
@click.option(
    "--dtype",
    type=click.Choice(["keep", "float32", "bfloat16", "float16"]),
    default="keep",
    show_default=True,
    help="Type of the stored weights; keep is each base tensor's own.",
)
@click.option(
    "--base-weights",
    type=click.Choice(["trained", "full"]),
    default="trained",
    show_default=True,
    help="Of a base that was quantised in training: the weights given back from it, or the full ones.",
)
@click.option(
    "--max-shard-size",
    type=SizeType(),
    metavar="SIZE",
    help="Cut the weights anew into files of at most this size, as 5GB; without it they are those of the base.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT where it is a model directory already.")
@click.option("--resume", is_flag=True, help="Go on with what an earlier, killed call for this OUT has finished.")
@click.option("--verify", is_flag=True, help="Compare the logits of base and adapter with the merged model's.")
@click.option("--json", "as_json", is_flag=True, help="Print the record of the merge as JSON instead of OUT.")
def merge(
    paths: tuple[Path, ...],
    weights: tuple[tuple[Path, float], ...],
    combine: str,
    density: float | None,
    seed: int,
    base: str | None,
    dtype: str,
    base_weights: str,
    max_shard_size: int | None,
    overwrite: bool,
    resume: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Fold the LoRA adapter ADAPTER, a directory or a run, into its base model and write the model directory OUT."""
    if len(paths) != (1 if weights else 2):
        raise click.UsageError("give ADAPTER and OUT, or --adapter DIR=WEIGHT for each of several and OUT")
    if (density is None) is not (combine == "linear") or (combine != "linear" and not weights):
        raise click.UsageError("--combine with another rule than linear takes --density and --adapter DIR=WEIGHT")
    out = paths[-1]
    from mft_merge.merge import Settings
    from mft_merge.merge import merge as merge_adapters
    from mft_merge.planning.weighted import Combination

    combination = None if density is None else Combination(combine, density, seed)
    settings = Settings(base, dtype, base_weights, overwrite, resume, verify, max_shard_size, combination)
    try:
        record = merge_adapters(list(weights) or [(paths[0], 1.0)], out, settings)
    except OSError as error:
        raise MergeError(error.strerror or str(error), where=error.filename and str(error.filename)) from error
    _print(out, record, as_json=as_json)


@main.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("tuned", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--rank", type=click.IntRange(min=1), required=True, help="Rank of the adapter; the full one loses nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the record with all residuals as JSON instead of OUT.")
def extract(base: Path, tuned: Path, out: Path, rank: int, as_json: bool) -> None:
    """Write the adapter OUT that makes the model directory BASE the model directory TUNED, as far as its rank goes."""
    from mft_merge.extract import extract as extract_adapter

    try:
        record = extract_adapter(base, tuned, out, rank)
    except OSError as error:
        raise MergeError(error.strerror or str(error), where=error.filename and str(error.filename)) from error
    _print(out, record, as_json=as_json)


def _print(out: Path, record: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        import orjson

        click.echo(orjson.dumps({"out": str(out)} | record, option=orjson.OPT_INDENT_2))
    else:
        click.echo(out)
