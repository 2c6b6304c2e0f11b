"""Two machines within this one: network namespaces joined by a cable, each with a /dev/shm of its own.

They share all other files, as machines of a cluster share the output directory, but no folder for temporary ones.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from mft_train.cli import main

ADDRESSES = ("10.87.0.1", "10.87.0.2")
# As root the kernel asks for nothing more; others become root in a namespace of users.
USER = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
ENTER_USER = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
HOLD = "mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo ready && exec sleep infinity"


class UnavailableError(Exception):
    """This system does not allow for namespaces; the message says why."""


class Machine:
    """A network and a /dev/shm that last as long as one sleeping process."""

    def __init__(self, inside: "Machine | None" = None) -> None:
        command = ["unshare", *(USER if inside is None else []), "--net", "--mount", "sh", "-c", HOLD]
        command = command if inside is None else inside.command(command)
        self.holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.holder.stdout.readline() != "ready\n":
            raise UnavailableError(self.holder.stderr.read().strip())

    def command(self, command) -> list[str]:
        """The command that runs another one on this machine, in the folder that it is started in."""
        enter = ["nsenter", "--target", str(self.holder.pid), *ENTER_USER, "--net", "--mount", f"--wd={Path.cwd()}"]
        return [*enter, "env", "TMPDIR=/dev/shm", *map(str, command)]

    def run(self, *command) -> None:
        subprocess.run(self.command(command), check=True, capture_output=True, timeout=20)

    def processes(self) -> list[int]:
        """All processes of this machine but its holder."""
        own = Path(f"/proc/{self.holder.pid}/ns/net").stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and (entry / "ns" / "net").stat().st_ino == own:
                    found.append(int(entry.name))
        return [process for process in found if process != self.holder.pid]

    def kill(self, spared: int | None = None) -> None:
        """SIGKILL to all of its processes at once, but for one that starts others."""
        for process in self.processes():
            if process == spared:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self.holder.kill()
        self.holder.communicate()


@pytest.fixture
def machines():
    """Two machines that reach each other at ADDRESSES, and nothing else; skips where the system allows for none."""
    with contextlib.ExitStack() as stack:
        try:
            pair = connect(stack)
        except UnavailableError as error:
            pytest.skip(f"no namespaces for two machines: {error}")
        yield pair


def connect(stack):
    """The two machines, which end with `stack`; raises UnavailableError."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "mount") if not shutil.which(tool)]
    if missing:
        raise UnavailableError(f"{missing[0]} is not installed")
    first = Machine()
    stack.callback(first.close)
    second = Machine(inside=first)
    stack.callback(second.close)
    try:
        cable = ["type", "veth", "peer", "name", "cable", "netns", str(second.holder.pid)]
        first.run("ip", "link", "add", "cable", *cable)
        for machine, address in zip((first, second), ADDRESSES, strict=True):
            machine.run("ip", "address", "add", f"{address}/24", "dev", "cable")
            machine.run("ip", "link", "set", "cable", "up")
    except subprocess.CalledProcessError as error:
        raise UnavailableError(error.stderr.decode().strip()) from error
    return first, second


@pytest.fixture
def launcher(write_run, tmp_path):
    """Makes, of settings, a function that runs the command with these and more; its run directory is `name`."""

    def launcher(settings):
        def launch(name, *arguments, **more):
            path = write_run(**settings | more)
            return CliRunner().invoke(main, ["launch", str(path), f"output={tmp_path / name}", *arguments])

        return launch

    return launcher
