"""Runs `mft-train` commands in ranks that are forked from one process, which has imported everything once.

Started as a program. Each line of stdin is a JSON object with `arguments`, the number of `ranks` and `output`, a path
to write what the ranks print to; the answer is a line of JSON, the exit code of each rank.
"""

import atexit
import json
import os
import socket
import sys
from pathlib import Path

os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def run_rank(arguments, environment, output):
    """Becomes a rank of a run; never returns."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= environment
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
        children = []
        for rank in range(ranks):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)} if ranks > 1 else {}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if ranks > 1 else {}
            child = os.fork()
            if child == 0:
                run_rank(request["arguments"], environment, Path(request["output"]))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.__stdout__.write(json.dumps(codes) + "\n")
        sys.__stdout__.flush()


if __name__ == "__main__":
    serve()
