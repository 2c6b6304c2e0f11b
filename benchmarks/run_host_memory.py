"""Host memory of each process from the start of a run to its end, by engine, on a random model of a given size.

    .venv/bin/python benchmarks/run_host_memory.py [--hidden 2048] [--layers 16] [--method lora]

Prints, for each engine, the most anonymous memory of every rank (what a process holds itself; files that it has mapped
are the page cache's), beside a process that only imports what a run imports, and what `plan` says of the run: the
memory of training, which on a CPU has the frozen weights in it wherever they lie, and that of loading.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "mft-train" / "tests"))
from conftest import write_dataset

ZERO = ["distributed.engine=deepspeed", "distributed.stage=3"]
RUNS = {
    "ddp x 1": (1, []),
    "ddp x 2": (2, []),
    "fsdp x 2": (2, ["distributed.engine=fsdp"]),
    "deepspeed, stage 3, x 2": (2, ZERO),
}


def anonymous_bytes(pid: int) -> int:
    """Anonymous resident memory of a process; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def processes_of(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def rank_of(pid: int) -> str | None:
    """The rank of a process of a run with several, None for others."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    ranks = [value.removeprefix(b"RANK=").decode() for value in variables if value.startswith(b"RANK=")]
    return ranks[0] if ranks else None


def peaks(command: list[str]) -> dict[str, int]:
    """The peak of every rank of a command, that of the command itself where it starts none."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    highest: dict[str, int] = {}
    while run.poll() is None:
        for pid in processes_of(run.pid):
            rank = rank_of(pid) or ("0" if pid == run.pid else None)
            if rank is not None:
                highest[rank] = max(highest.get(rank, 0), anonymous_bytes(pid))
        time.sleep(0.05)
    if run.returncode:
        raise SystemExit(run.stderr.read())
    return highest


def planned(config: Path, ranks: int, overrides: list[str]) -> dict[str, str]:
    """What the plan of a run says of its memory."""
    command = [sys.executable, "-m", "mft_train", "plan", str(config), "--processes", str(ranks), "--json", *overrides]
    document = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    loading = {name.removesuffix("_bytes"): gib(size) for name, size in document["loading"].items()}
    return {"training": gib(document["memory"]["total_bytes"]), **loading}


def gib(size: int) -> str:
    """A number of bytes in GiB."""
    return f"{size / 2**30:.2f} GiB"


def main() -> None:
    """Runs every engine and prints a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--only", nargs="*", default=[""], help="engines whose name begins so")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, dataset, config = Path(folder, "base"), Path(folder, "dataset"), Path(folder, "run.yaml")
        make_model = f"""
import torch
from transformers import LlamaConfig, LlamaForCausalLM
shape = LlamaConfig(vocab_size=32000, hidden_size={options.hidden}, intermediate_size={options.hidden * 3},
    num_hidden_layers={options.layers}, num_attention_heads=16, num_key_value_heads=8, tie_word_embeddings=True)
model = LlamaForCausalLM(shape)
model.save_pretrained({str(base)!r})
print(model.num_parameters())
"""
        made = subprocess.run([sys.executable, "-c", make_model], check=True, capture_output=True, text=True)
        parameters = int(made.stdout.split()[-1])
        write_dataset(dataset, {"a": (8, 2), "b": (8, 2)})
        lines = {"model": base, "dataset": dataset, "method": options.method, "dtype": "float32"}
        lines |= {"max_steps": 2, "global_batch_size": 2, "trackers": "[]", "checkpoint_interval": 1}
        lines |= {"timeout_seconds": 1800}
        imports = [sys.executable, "-c", "import mft_train.running.train, peft, deepspeed, streaming, transformers"]
        print(f"{parameters:,} parameters, {parameters * 4 / 2**30:.2f} GiB in float32, method {options.method}")
        print(json.dumps({"imports": {rank: gib(size) for rank, size in peaks(imports).items()}}), flush=True)
        for name, (ranks, overrides) in RUNS.items():
            if not name.startswith(tuple(options.only)):
                continue
            settings = lines | {"output": Path(folder, name.replace(" ", "-").replace(",", ""))}
            config.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
            command = [sys.executable, "-m", "mft_train", "launch", str(config), "--processes", str(ranks), *overrides]
            found = peaks(command)
            measured = {rank: gib(found[rank]) for rank in sorted(found)}
            print(json.dumps({name: measured | {"plan": planned(config, ranks, overrides)}}), flush=True)


if __name__ == "__main__":
    main()
