"""The filters of system calls, for each machine that they are written for, by the kernel's own tables of numbers."""

import errno
import re
from pathlib import Path

import pytest

from mft_eval.sandbox import call_filter
from mft_eval.sandbox.system_calls import _CAPSET, _CLONE

# Machine -> where a Linux distribution puts the kernel's table of its numbers; arm64 has the generic ones.
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
# Machine -> EM_X86_64 and EM_AARCH64 of elf.h.
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
# Newer than the headers of some systems.
YOUNGEST = {"fchmodat2", "setxattrat", "removexattrat", "file_setattr"}
THREAD, NAMESPACE = 0x3D0F00, 0x10000000
ALLOWED, KILLED = 0x7FFF0000, 0x80000000


def refused(number):
    return 0x50000 | number


@pytest.mark.parametrize("machine", HEADERS)
def test_every_number_is_the_kernels(machine):
    header = next(filter(Path.is_file, map(Path, HEADERS[machine])), None)
    if header is None:
        pytest.skip("no kernel headers on this machine")
    table = {
        name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    }
    column = list(HEADERS).index(machine)
    ours = {name: numbers[column] for name, numbers in call_filter._CALLS.items()}
    assert {name: number for name, number in ours.items() if name in table or name not in YOUNGEST} == {
        name: table.get(name) for name in ours if name in table or name not in YOUNGEST
    }
    assert (_CLONE[machine], _CAPSET[machine]) == (table["clone"], table["capset"])


@pytest.mark.parametrize("machine", ELF_MACHINES)
def test_the_architecture_is_the_kernels(machine):
    # Of 64 bits, little-endian.
    assert call_filter._ARCHITECTURES[machine] == ELF_MACHINES[machine] | 0xC0000000


def answer(program, number, architecture, first_argument=0):
    """What the filter answers to a system call: the kernel's machine for such programs, as far as ours go."""
    fields, accumulator, place = {0: number, 4: architecture, 16: first_argument}, 0, 0
    while True:
        code, if_true, if_false, operand = program[place]
        place += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            accumulator = fields[operand]
        else:
            holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}
            place += if_true if holds[code] else if_false


@pytest.mark.parametrize("machine", ELF_MACHINES)
@pytest.mark.parametrize("is_fork_denied", [False, True])
def test_a_filter_refuses_what_it_names_and_nothing_else(machine, is_fork_denied):
    names = call_filter._METADATA if is_fork_denied else call_filter._KERNEL
    program = call_filter._program(names, is_fork_denied=is_fork_denied, is_limit_own=False, machine=machine)
    architecture = call_filter._ARCHITECTURES[machine]
    (other,) = call_filter._ARCHITECTURES.keys() - {machine}
    numbers = {name: call_filter._number(name, machine) for name in call_filter._CALLS}
    expected = {numbers[name]: refused(errno.EPERM) for name in names}
    expected[numbers["clone3"]] = refused(errno.ENOSYS)
    if is_fork_denied:
        expected |= {numbers[name]: refused(errno.EAGAIN) for name in ("fork", "vfork", "clone")}
    for number in range(600):
        assert answer(program, number, architecture) == expected.get(number, ALLOWED)
        assert answer(program, number, call_filter._ARCHITECTURES[other]) == KILLED
    clone = numbers["clone"]
    assert answer(program, clone, architecture, NAMESPACE) == refused(errno.EPERM)
    assert answer(program, clone, architecture, THREAD) == ALLOWED
    if machine == "x86_64":
        assert answer(program, 0x40000000, architecture) == KILLED


@pytest.mark.parametrize("machine", ELF_MACHINES)
def test_a_process_sets_no_limits_but_its_own(machine):
    names = call_filter._OTHERS | call_filter.SIGNALS
    program = call_filter._program(names, is_fork_denied=False, is_limit_own=True, machine=machine)
    architecture, number = call_filter._ARCHITECTURES[machine], call_filter._number("prlimit64", machine)
    assert answer(program, number, architecture, 0) == ALLOWED
    assert answer(program, number, architecture, 7) == refused(errno.EPERM)
    assert answer(program, call_filter._number("socket", machine), architecture) == refused(errno.EPERM)
