"""Trains a cut of a base model for many steps on rows of different lengths and prints what its process holds."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import yaml

SHOWN = (1, 10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)


def cut_model(base_model: Path, num_layers: int, out: Path) -> None:
    """The base model's first layers, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32, trust_remote_code=False)
    model.model.layers = model.model.layers[:num_layers]
    model.config.num_hidden_layers = num_layers
    model.config.layer_types = None
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(base_model, trust_remote_code=False).save_pretrained(out)


def resident_bytes(folder: Path, settings: dict) -> dict[int, int]:
    """Resident bytes of a run's process after the steps of SHOWN."""
    from mft_train.cli import main as mft_train
    from mft_train.tracking.metrics import MetricsWriter

    found = {}
    write = MetricsWriter.write

    def watched(self: MetricsWriter, event: str, **values: object) -> None:
        write(self, event, **values)
        if event == "train" and values["global_step"] in SHOWN:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found[values["global_step"]] = pages * 4096

    MetricsWriter.write = watched
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    mft_train(["launch", str(folder / "run.yaml")], standalone_mode=False)
    return found


@click.command()
@click.argument("task_folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--base-model", required=True, type=click.Path(exists=True, path_type=Path), help="Base model directory.")
@click.option("--layers", type=int, default=2, show_default=True, help="Layers that are kept.")
@click.option("--steps", type=int, default=1000, show_default=True, help="Optimizer steps.")
@click.option("--seq-length", type=int, default=256, show_default=True, help="Longest row, one conversation each.")
def main(task_folders: tuple[Path, ...], base_model: Path, layers: int, steps: int, seq_length: int) -> None:
    """Train a LoRA on the first layers of a model, and print resident memory by step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cut_model(base_model, layers, folder / "model")
        command = [Path(sys.executable).with_name("mft-data"), "build", *task_folders, folder / "dataset"]
        options = ["--tokenizer", folder / "model", "--seq-length", str(seq_length), "--packing", "none"]
        options += ["--overlong", "truncate", "--validation", "0.001", "--workers", "1"]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        settings = {"model": str(folder / "model"), "dataset": str(folder / "dataset"), "output": str(folder / "run")}
        settings |= {"max_steps": steps, "global_batch_size": 2, "validation_interval": 0, "trackers": []}
        found = resident_bytes(folder, settings)
    sizes = {step: round(size / 2**20) for step, size in found.items()}
    growth = {"growth_after_step_100": round(sizes[max(sizes)] / sizes[100] - 1, 4)} if 100 in sizes else {}
    click.echo(json.dumps({"resident_mib": sizes} | growth))


if __name__ == "__main__":
    main()
