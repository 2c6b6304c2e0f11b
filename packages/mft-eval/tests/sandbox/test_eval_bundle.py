"""The code that a sandbox is handed."""

import subprocess
import sys

from mft_eval.sandbox.bubblewrap import PYTHON_FLAGS
from mft_eval.sandbox.bundle import boot_code, make_bundle
from mft_eval.sandbox.program_host import READY

# Pipes hold this much without waiting.
PIPE_BYTES = 2**18


def test_the_bundle_is_all_that_a_host_needs():
    """The folder that it could look into is not there."""
    command = [sys.executable, *PYTHON_FLAGS, "-c", boot_code("/no/such/folder")]
    done = subprocess.run(command, input=make_bundle(), capture_output=True)
    assert done.stdout == len(READY).to_bytes(4, "little") + READY
    # It then waits for its first message, which never comes.
    assert done.stderr.endswith(b"EOFError\n")


def test_the_bundle_fits_into_a_pipe():
    assert len(make_bundle()) < PIPE_BYTES // 2


def test_a_host_without_its_bundle_ends_quietly():
    command = [sys.executable, *PYTHON_FLAGS, "-c", boot_code("/no/such/folder")]
    done = subprocess.run(command, input=b"\1\0\0\0", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
