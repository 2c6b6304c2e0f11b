"""Prints what the quickstart made: losses and pass@1 before and after, and where everything lies."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table


def validation_losses(run_dir: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The task losses of a run's first and last validation."""
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [event["task_losses"] for event in events if event["event"] == "validation"]
    return losses[0], losses[-1]


def pass_at_1(results: Path) -> float:
    """pass@1 of a results file."""
    return json.loads(results.read_text())["pass_at_k"]["pass@1"]


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("base", type=click.Path(path_type=Path))
def main(out: Path, base: Path) -> None:
    """Print the closing table of the quickstart in OUT, which started from the model BASE."""
    before, after = validation_losses(out / "run")
    table = Table("", "before", "after", title="Fine-tuning of SmolLM2-135M-Instruct on three tasks")
    for task, loss in before.items():
        table.add_row(f"validation loss, {task}", f"{loss:.4f}", f"{after[task]:.4f}")
    table.add_row("pass@1, demo problems", *(f"{pass_at_1(out / f'{n}-results.json'):.3f}" for n in ("base", "tuned")))
    console = Console()
    console.print(table)
    places = {
        "base model": base,
        "task folders": out / "demo/tasks",
        "dataset": out / "dataset",
        "run and adapter": out / "run",
        "merged model": out / "merged",
        "results": out / "tuned-results.json",
    }
    for name, path in places.items():
        console.print(f"{name:16} {path}", highlight=False)
    console.print(f"\nTalk to it:  .venv/bin/mft-infer chat {out / 'merged'}", highlight=False)


if __name__ == "__main__":
    main()
