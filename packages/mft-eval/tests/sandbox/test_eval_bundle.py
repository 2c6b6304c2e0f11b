"""The code that a nursery is handed."""

import os
import socket
import subprocess
import sys

from mft_eval.sandbox.bubblewrap import PYTHON_FLAGS
from mft_eval.sandbox.bundle import boot_code, make_bundle
from mft_eval.sandbox.nursery import START, STARTED
from mft_eval.sandbox.program_host import READY
from mft_eval.sandbox.walls import NONE

# The folder that it could look into is not there.
COMMAND = [sys.executable, *PYTHON_FLAGS, "-c", boot_code("/no/such/folder"), NONE]


def test_the_bundle_is_all_that_a_nursery_and_its_hosts_need():
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(COMMAND, stdin=theirs.fileno()) as nursery:
        ours.sendall(make_bundle())
        incoming, answers = os.pipe()
        given, outgoing = os.pipe()
        status, told = os.pipe()
        noise = os.memfd_create("noise")
        socket.send_fds(ours, [START], [given, answers, noise, told, os.open("/proc", os.O_RDONLY)])
        message, _, _, _ = socket.recv_fds(ours, 1, 1)
        assert message == STARTED, os.pread(noise, 9999, 0)
        assert os.read(incoming, 99) == len(READY).to_bytes(4, "little") + READY
        # It then waits for its first message, which never comes.
        for descriptor in (given, outgoing, answers, told):
            os.close(descriptor)
        assert os.read(status, 9) == b"1"
        assert os.pread(noise, 9999, 0).endswith(b"EOFError: \n")
        ours.shutdown(socket.SHUT_RDWR)
        assert nursery.wait() == 0


def test_a_nursery_without_its_bundle_ends_quietly():
    done = subprocess.run(COMMAND, input=b"\1\0\0\0", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
