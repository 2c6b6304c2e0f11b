"""How long two ranks take to have their shares of a model: each reads its own, or rank 0 reads all and sends them.

    .venv/bin/python benchmarks/run_loading.py [--hidden 2048] [--layers 16] [--method full] [--turns 3]

The seconds from the first look at the files to a model that is ready to train, by turns, for fsdp and ZeRO's stage 3.
The files are in the page cache and the ranks on one machine, so nothing is said of disks and networks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "mft-train" / "tests"))
from conftest import write_dataset

ENGINES = {
    "fsdp": ["distributed.engine=fsdp"],
    "stage 3": ["distributed.engine=deepspeed", "distributed.stage=3"],
}
# Code of a model's own may do anything at loading, so that rank 0 does it alone; this model has none.
WAYS = {"read": [], "sent": ["trust_remote_code=true"]}
RANK = "--rank"


def time_rank(arguments: list[str]) -> None:
    """Runs mft-train as a rank until its model is ready, and prints rank 0's seconds."""
    import torch

    from mft_train.cli import main
    from mft_train.running import train

    load = train.load_weights
    begun = [0.0]

    def timed_load(*given: object) -> object:
        begun[0] = time.perf_counter()
        return load(*given)

    def end(*_: object) -> None:
        torch.distributed.barrier()
        if os.environ["RANK"] == "0":
            print(f"ready after {time.perf_counter() - begun[0]} s", file=sys.stderr, flush=True)
        os._exit(0)

    train.load_weights, train.checked_loss = timed_load, end
    main(arguments, prog_name="mft-train")


def seconds(arguments: list[str]) -> float:
    """Those of one run of two ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__, RANK]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    if not (found := re.search(r"ready after (\S+) s", done.stderr)):
        raise SystemExit(done.stderr)
    return float(found[1])


def main() -> None:
    """Runs every engine both ways by turns and prints medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--method", default="full")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        base, dataset, config = Path(folder, "base"), Path(folder, "dataset"), Path(folder, "run.yaml")
        shape = {"vocab_size": 32000, "hidden_size": options.hidden, "intermediate_size": options.hidden * 3}
        shape |= {"num_hidden_layers": options.layers, "num_attention_heads": 16, "num_key_value_heads": 8}
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
        parameters = model.num_parameters()
        model = model.bfloat16().to_empty(device="cpu")
        for weight in model.parameters():
            weight.data.zero_()
        model.save_pretrained(base)
        del model
        write_dataset(dataset, {"a": (2, 1)})
        lines = {"model": base, "dataset": dataset, "output": Path(folder, "run"), "method": options.method}
        lines |= {"max_steps": 1, "global_batch_size": 2, "trackers": "[]", "checkpoint_interval": 0}
        lines |= {"validation_interval": 0, "dtype": "float32"}
        config.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
        found = {(engine, way): [] for engine in ENGINES for way in WAYS}
        for _ in range(options.turns):
            for engine, way in found:
                overrides = ["launch", str(config), "--overwrite", *ENGINES[engine], *WAYS[way]]
                found[engine, way].append(seconds(overrides))
        answer = {f"{engine}, {way}": round(statistics.median(times), 1) for (engine, way), times in found.items()}
        print(json.dumps({"parameters": parameters, "seconds": answer}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == [RANK]:
        time_rank(sys.argv[2:])
    else:
        main()
