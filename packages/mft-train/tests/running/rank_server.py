"""Runs `mft-train` commands in ranks that are forked from one process, which has imported everything once.

Started as a program. Each line of stdin is a JSON object with `arguments`, the number of `ranks` and `output`, a path
to write what the ranks print to; the answer is a line of JSON, the exit code of each rank. With `memory`, a path, each
rank has its anonymous memory watched from before it loads the model: the most above that goes there, as a JSON list.
With `rows`, a path, each rank adds a line of JSON for every step to a file beside it: the step and the rows that count.
"""

import atexit
import json
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def resident(pid):
    """Bytes that a process holds itself, or has of a file of weights; 0 once it is gone."""
    try:
        anonymous = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(anonymous[1]) << 10 if anonymous else 0


def mapped_weights(pid):
    """Bytes resident of files of weights that a process reads as its memory."""
    try:
        text = Path(f"/proc/{pid}/smaps").read_text()
    except OSError:
        return 0
    parts = re.findall(r"\.safetensors\n(?:\S+: .*\n)*?Rss: +(\d+) kB\n(?:\S+: .*\n)*?Anonymous: +(\d+) kB", text)
    return sum(int(all_of_it) - int(own) for all_of_it, own in parts) << 10


def watch(pid, begun, found):
    """Leaves in `found` the most that a process holds above what it did when `begun` appeared."""
    while not begun.exists() and resident(pid):
        time.sleep(0.005)
    base = top = resident(pid)
    mapped, looks = 0, 0
    while now := resident(pid):
        if looks % 50 == 0:
            mapped = mapped_weights(pid)
        looks += 1
        top = max(top, now + mapped)
        time.sleep(0.001)
    found[pid] = top - base


def announce_loading(begun):
    """Lets this rank say when it begins to load its model, and wait until it has been looked at."""
    import mft_train.running.train as training

    load = training.load_weights

    def load_weights(*arguments):
        begun.touch()
        time.sleep(0.2)
        return load(*arguments)

    training.load_weights = load_weights


def write_rows(path):
    """Lets this rank write down the task and number of each row that it trains on."""
    from mft_train.running.run import Run

    own_step = Run.step

    def step(run, step_rows, learning_rate, global_step):
        pairs = zip(step_rows.rows, step_rows.row_numbers, strict=True)
        rows = [[row.task_id, number] for row, number in pairs if row.loss_mask.any()]
        with path.open("a") as file:
            file.write(json.dumps([global_step, rows]) + "\n")
        return own_step(run, step_rows, learning_rate, global_step)

    Run.step = step


def run_rank(arguments, environment, output, begun=None, rows=None):
    """Becomes a rank of a run; never returns."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= environment
    if begun:
        announce_loading(begun)
    if rows:
        write_rows(rows)
    end_with(arguments)


def end_with(arguments):
    """Runs the command in this process and ends it; never returns."""
    from mft_train.cli import main

    try:
        main(arguments, prog_name="mft-train")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def serve():
    """Answers requests until stdin ends."""
    # What a rank needs, but for what starts threads or takes hold of a device.
    import accelerate
    import deepspeed
    import peft
    import streaming
    import torch
    import transformers

    import mft_train.running.train

    assert all((accelerate, deepspeed, peft, streaming, torch, transformers, mft_train))
    for line in sys.stdin:
        request = json.loads(line)
        ranks = request["ranks"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        children, watchers, found = [], [], {}
        for rank in range(ranks):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)} if ranks > 1 else {}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if ranks > 1 else {}
            begun = Path(f"{request['memory']}.{rank}") if "memory" in request else None
            rows = Path(f"{request['rows']}.{rank}") if "rows" in request else None
            child = os.fork()
            if child == 0:
                run_rank(request["arguments"], environment, Path(request["output"]), begun, rows)
            children.append(child)
            if begun:
                watchers.append(threading.Thread(target=watch, args=(child, begun, found)))
        for watcher in watchers:  # no fork comes after a thread
            watcher.start()
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        for watcher in watchers:
            watcher.join()
        if watchers:
            Path(request["memory"]).write_text(json.dumps([found[child] for child in children]))
        sys.__stdout__.write(json.dumps(codes) + "\n")
        sys.__stdout__.flush()


if __name__ == "__main__":
    serve()
