"""The code that a server and its nursery are handed."""

import json
import os
import socket
import subprocess
import sys

from mft_eval.judging.judgement import OUTSIDE, Limits, Ruling
from mft_eval.judging.requests import make_request
from mft_eval.problems.problem import Problem, PythonTest
from mft_eval.sandbox.bubblewrap import PYTHON_FLAGS
from mft_eval.sandbox.bundle import NURSERY_MODULES, SERVER_MODULES, boot_code, make_bundle
from mft_eval.sandbox.protocol import READY, START, STARTED
from mft_eval.sandbox.walls import NONE

# The folder that it could look into is not there.
COMMAND = [sys.executable, *PYTHON_FLAGS, "-c", boot_code("/no/such/folder"), NONE]


def test_the_bundle_is_all_that_a_nursery_and_its_hosts_need():
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(COMMAND, stdin=theirs.fileno()) as nursery:
        ours.sendall(make_bundle(NURSERY_MODULES))
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


def test_the_bundle_is_all_that_a_server_needs():
    server = [sys.executable, *PYTHON_FLAGS, "-c", boot_code("/no/such/folder")]
    nursery = make_bundle(NURSERY_MODULES)
    settings = {"command": COMMAND, "walls": NONE, "environment": {}, "places": {}, "num_bundle_bytes": len(nursery)}
    problem = Problem("p", (), "", PythonTest("f", "assert f(2) == 4"), "")
    program = "def f(x): return x * x"
    request = make_request(problem, program, Ruling(OUTSIDE, may_use_objects=False), Limits(10, 1024))
    with subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(make_bundle(SERVER_MODULES) + json.dumps(settings).encode() + b"\n" + nursery)
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        outcome = json.loads(process.stdout.readline())
        process.stdin.close()
    assert (outcome["verdict"], process.returncode) == ("passed", 0), outcome
