"""Runs `mft-train` commands in ranks that are forked from one process, which has imported everything once.

Started as a program. Each line of stdin is a JSON object with `arguments`, the number of `ranks` and `output`, a path
to write what the ranks print to; the answer is a line of JSON, the exit code of each rank. With `memory`, a path, each
rank is watched from before it loads the model, and what it holds above that goes there as a JSON list of objects:
`most`, all of its anonymous memory and its pages of weights' files, at the highest; `loading`, its anonymous memory
alone until the model is ready to train. With `rows`, a path, each rank adds a line of JSON for every step to a file
beside it: the step and the rows that count.

With `environments`, an object of variables for each rank, these are the launcher's; with `folders`, a path for each
rank, it works there. With `script`, a path, the ranks run that Python file with the arguments in place of a command.
"""

import atexit
import json
import os
import re
import runpy
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
    ready = ready_file(begun)
    while not begun.exists() and resident(pid):
        time.sleep(0.005)
    base = top = loading = resident(pid)
    mapped, looked = 0, 0.0
    while now := resident(pid):
        if time.monotonic() - looked > 0.2:
            mapped, looked = mapped_weights(pid), time.monotonic()
        top = max(top, now + mapped)
        if not ready.exists():
            loading = max(loading, now)
        time.sleep(0.002)
    found[pid] = {"most": top - base, "loading": loading - base}


def begun_file(request, rank):
    """The file by which a rank says that it begins to load its model."""
    return Path(f"{request['memory']}.{rank}")


def ready_file(begun):
    """The file by which a rank says that its model is ready to train, beside the one for the beginning."""
    return Path(f"{begun}.ready")


def announce_loading(begun):
    """Lets this rank say when it begins to load its model and when that is ready, and wait until it is looked at."""
    import mft_train.running.train as training

    load, check = training.load_weights, training.checked_loss

    def load_weights(*arguments):
        begun.touch()
        time.sleep(0.2)
        return load(*arguments)

    def checked_loss(*arguments):
        time.sleep(0.02)
        ready_file(begun).touch()
        return check(*arguments)

    training.load_weights, training.checked_loss = load_weights, checked_loss


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


def run_rank(request, rank, environment):
    """Becomes a rank of a run; never returns."""
    descriptor = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= environment
    if "folders" in request:
        os.chdir(request["folders"][rank])
    if "memory" in request:
        announce_loading(begun_file(request, rank))
    if "rows" in request:
        write_rows(Path(f"{request['rows']}.{rank}"))
    end_with(request["arguments"], request.get("script"))


def launcher_variables(ranks):
    """What a launcher of so many ranks on this machine tells each of them."""
    if ranks == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(ranks)]


def end_with(arguments, script=None):
    """Runs the command, or a Python file, in this process and ends it; never returns."""
    from mft_train.cli import main

    try:
        if script:
            sys.argv = [script, *arguments]
            runpy.run_path(script, run_name="__main__")
        else:
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
        children, watchers, found = [], [], {}
        for rank, environment in enumerate(request.get("environments") or launcher_variables(ranks)):
            child = os.fork()
            if child == 0:
                run_rank(request, rank, environment)
            children.append(child)
            if "memory" in request:
                watchers.append(threading.Thread(target=watch, args=(child, begun_file(request, rank), found)))
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
