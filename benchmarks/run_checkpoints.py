"""What a checkpoint costs: how long training stands still, until it is there, its bytes, and what a resume takes.

    .venv/bin/python benchmarks/run_checkpoints.py [--hidden 768] [--layers 12]

Full training of a random model in float32, one process, a checkpoint after every second of six steps, written in the
foreground and in the background by turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "mft-train" / "tests"))
from conftest import write_dataset

TURNS = 3


def main() -> None:
    """Runs by turns and prints medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()

    from transformers import LlamaConfig, LlamaForCausalLM

    from mft_train.config.config import RunConfig
    from mft_train.engine.world import World
    from mft_train.running import run, train

    stalls: list[float] = []
    waits: list[float] = []
    resumes: list[float] = []
    save, load = run.save_checkpoint, train.load_checkpoint

    def timed_save(*arguments: object) -> None:
        *rest, after = arguments
        started = time.perf_counter()

        def told() -> None:
            waits.append(time.perf_counter() - started)
            after()

        save(*rest, told)
        stalls.append(time.perf_counter() - started)

    def timed_load(*arguments: object) -> object:
        started = time.perf_counter()
        state = load(*arguments)
        resumes.append(time.perf_counter() - started)
        return state

    run.save_checkpoint, train.load_checkpoint = timed_save, timed_load
    with tempfile.TemporaryDirectory() as folder:
        base, dataset = Path(folder, "base"), Path(folder, "dataset")
        shape = {"vocab_size": 32000, "hidden_size": options.hidden, "intermediate_size": options.hidden * 3}
        shape |= {"num_hidden_layers": options.layers, "num_attention_heads": 12, "num_key_value_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(**shape))
        model.save_pretrained(base)
        parameters = model.num_parameters()
        del model
        write_dataset(dataset, {"a": (24, 2), "b": (24, 2)})
        figures: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(2 * TURNS):
            is_background = turn % 2 == 1
            output = Path(folder, f"run-{turn}")
            config = RunConfig(
                model=str(base), dataset=str(dataset), output=str(output), method="full", max_steps=6,
                global_batch_size=8, checkpoint_interval=2, validation_interval=0, trackers=[],
                background_checkpoints=is_background, keep_last=1,
            )  # fmt: skip
            stalls.clear()
            train.train(config, World())
            figures[is_background] += stalls[:2]  # the last is waited for
            if turn == 0:
                checkpoint = next((output / "checkpoints").glob("step-*"))
                sizes = {p.relative_to(checkpoint): p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()}
                longer = config.model_copy(update={"max_steps": 7})
                train.train(longer, World(), is_resume=True)
        answer = {
            "parameters": parameters,
            "checkpoint_bytes": sum(sizes.values()),
            "foreground_stall_seconds": round(statistics.median(figures[False]), 2),
            "background_stall_seconds": round(statistics.median(figures[True]), 2),
            "until_published_seconds": round(statistics.median(waits), 2),
            "resume_state_seconds": round(statistics.median(resumes), 2),
        }
        print(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
