"""Runs `mft-train` command lines, launchers and their ranks, as forks of one process, which has imported everything.

Started as a program. Each line of stdin is a JSON object with `arguments`, `log`, a path to write what the command
prints to, and `environment`, variables that are set for it; the answers are two lines: the process id of the command,
which leads a session of its own, and its exit code. A rank that a launcher starts is its child, with the environment
that the launcher gives it and a session of its own, as if it had been executed.
"""

import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

from rank_server import end_with


class Forked(subprocess.Popen):
    """A child process that runs `mft-train` without executing Python anew."""

    def _execute_child(self, args, _executable, _preexec, _close_fds, _pass_fds, _cwd, env, *_rest):
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            return
        os.setsid()
        weakref.finalize._registry.clear()  # the launcher's temporary folder is not the rank's to delete
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for path in [*Path("/proc/self/fd").iterdir()]:
            if is_socket(path):  # the launcher's connections are not the rank's
                os.close(int(path.name))
        os.environ.clear()
        os.environ.update(env)
        end_with(args[args.index("mft_train") + 1 :])


def is_socket(path):
    """Whether an open file of this process is a socket."""
    try:
        return str(path.readlink()).startswith("socket:")
    except OSError:
        return False


def serve():
    """Answers requests until stdin ends."""
    import accelerate.commands.launch
    import peft
    import streaming
    import torch.distributed.run
    import torch.utils.tensorboard
    import transformers
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    import mft_train.running.train

    assert all((accelerate, peft, streaming, torch, transformers, mft_train))
    subprocess_handler.Popen = Forked
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            os.environ |= request["environment"]
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            os.dup2(log, 1), os.dup2(log, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            end_with(request["arguments"])
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
