"""Tests that are a part of the program, in C++ and JavaScript: every pass is marked; the sweep has the hostile ones."""

import shutil
import time

import pytest

from mft_eval.judging.judgement import Limits
from mft_eval.judging.server import _late
from mft_eval.problems.compiled_tests import compiled_test
from mft_eval.problems.problem import Problem

LIMITS = Limits(3, 512)
TESTS = {
    "cpp": compiled_test("cpp", "twice", "int main() {\n    assert(twice(2) == 4);\n    assert(twice(-1) == -2);\n}\n"),
    "javascript": compiled_test(
        "javascript",
        "twice",
        "const assert = require('node:assert');\nassert.deepEqual(twice(2), 4);\nconsole.assert(twice(-1) === -2);\n",
    ),
}
RIGHT = {"cpp": "int twice(int x) { return x + x; }", "javascript": "function twice(x) { return x + x; }"}
COMMANDS = {"cpp": "g++", "javascript": "node"}


@pytest.fixture
def judge_source(judge_problem):
    def run(language, program):
        if shutil.which(COMMANDS[language]) is None:
            pytest.skip(f"no {COMMANDS[language]} on this machine")
        problem = Problem("p", (), "", TESTS[language], RIGHT[language], language)
        return judge_problem(problem, program, LIMITS)

    return run


@pytest.mark.parametrize("language", TESTS)
def test_a_right_program_passes_with_a_mark(judge_source, language):
    judgement = judge_source(language, RIGHT[language])
    assert (judgement.verdict, judgement.mode) == ("passed", "inside"), judgement
    assert judgement.untrusted == "the tests are a part of the program"


def test_the_compilers_time_is_not_the_programs(judge_source):
    start = time.monotonic()
    judgement = judge_source("cpp", f"#include <bits/stdc++.h>\n{RIGHT['cpp']}")
    assert judgement.verdict == "passed"
    assert judgement.seconds < (time.monotonic() - start) / 2


def test_what_the_alarm_means_depends_on_what_has_begun():
    build = {"build": ["g++"]}
    assert _late(build, [], 9.0)["verdict"] == "harness-error"
    assert _late(build, [1.0], 61.5) == {"verdict": "timeout", "detail": "while it was built", "seconds": 60.5}
    assert _late(build, [1.0, 7.0], 9.0) == {"verdict": "timeout", "detail": "", "seconds": 2.0}
    assert _late({"build": []}, [7.0], 9.0) == {"verdict": "timeout", "detail": "", "seconds": 2.0}


CPP = {
    "is wrong": ("int twice(int x) { return x; }", "wrong"),
    "is wrong in the last test": ("int twice(int x) { return x * x; }", "wrong"),
    "leaves while it starts": (
        "#include <cstdlib>\nstruct A { A() { std::_Exit(0); } } a;\nint twice(int) { return 0; }",
        "wrong",
    ),
    "leaves in a call": ("#include <cstdlib>\nint twice(int) { std::exit(0); }", "wrong"),
    "leaves with a status": ("#include <cstdlib>\nint twice(int) { std::exit(5); }", "exception"),
    "aborts": ("#include <cstdlib>\nint twice(int) { std::abort(); }", "wrong"),
    "throws": ("int twice(int) { throw 1; }", "wrong"),
    "crashes": ("int twice(int x) { return *(volatile int*)0 + x; }", "killed"),
    "kills itself": ("#include <signal.h>\nint twice(int) { raise(9); return 0; }", "killed"),
    "never ends": ("int twice(int) { volatile int n = 0; for (;;) n = n + 1; }", "timeout"),
    "switches assertions off": ("#define NDEBUG\n#include <cassert>\nint twice(int) { return 0; }", "wrong"),
    "replaces assertions": ("#define assert(x) ((void)0)\nint twice(int) { return 0; }", "wrong"),
    "brings a main of its own": ("int twice(int) { return 0; }\nint main() { return 0; }", "exception"),
    "comments the tests out": ("int twice(int) { return 0; }\n/*", "exception"),
    "prints a verdict": ('#include <cstdio>\nint twice(int) { puts("passed"); return 0; }', "wrong"),
    "closes its descriptors": (
        "#include <unistd.h>\nint twice(int x) { for (int i = 0; i < 99; i++) close(i); return x; }",
        "wrong",
    ),
    "eats memory": ("#include <vector>\nint twice(int) { std::vector<char> v(1ull << 33, 1); return v[1]; }", "wrong"),
    "is a fork bomb": ("#include <unistd.h>\nint twice(int) { for (;;) fork(); }", "timeout"),
    "leaves a child behind": ("#include <unistd.h>\nint twice(int x) { if (!fork()) sleep(99); return x; }", "wrong"),
    "includes a secret": ('#include "/etc/passwd"\nint twice(int) { return 0; }', "exception"),
    "includes without end": ('#include "main.cpp"\nint twice(int) { return 0; }', "exception"),
    "uses the network": (
        "#include <sys/socket.h>\n#include <netinet/in.h>\n#include <stdlib.h>\nint twice(int) {\n"
        "    sockaddr_in a{}; a.sin_family = AF_INET; a.sin_port = htons(53); a.sin_addr.s_addr = 0x01010101;\n"
        "    if (connect(socket(AF_INET, SOCK_STREAM, 0), (sockaddr*)&a, sizeof a)) exit(7);\n    return 0; }",
        "exception",
    ),
    "recurses in templates": (
        "template <int N> struct A { static const int v = A<N + 1>::v; };\nint twice(int) { return A<0>::v; }",
        "exception",
    ),
    "is empty": ("", "exception"),
}
JAVASCRIPT = {
    "is wrong": ("function twice(x) { return x; }", "exception"),
    "is wrong in the last test": ("function twice(x) { return x * x; }", "exception"),
    "leaves while it loads": ("process.exit(0);", "wrong"),
    "leaves in a call": ("function twice(x) { process.exit(0); }", "wrong"),
    "leaves at the exit": ("process.on('exit', () => process.exit(0)); function twice(x) { return 0; }", "wrong"),
    "kills itself": ("function twice(x) { process.kill(process.pid, 'SIGKILL'); while (true); }", "killed"),
    "aborts": ("function twice(x) { process.abort(); }", "wrong"),
    "throws": ("function twice(x) { throw new Error('no'); }", "exception"),
    "never ends": ("function twice(x) { while (true); }", "timeout"),
    "waits for ever": ("setInterval(() => {}, 1000); function twice(x) { return x + x; }", "timeout"),
    "swallows errors": ("process.on('uncaughtException', () => {}); function twice(x) { return 0; }", "wrong"),
    "replaces console.assert": (
        "console.assert = () => {}; function twice(x) { return Math.abs(x + x); }",
        "exception",
    ),
    "overrides valueOf": ("function twice(x) { return { valueOf: () => 4, toString: () => '4' }; }", "exception"),
    "prints a verdict": ("function twice(x) { console.log('passed'); return 0; }", "exception"),
    "eats memory": ("function twice(x) { const a = []; for (;;) a.push(new Array(1e6).fill(1)); }", "wrong"),
    "reads a secret": ("function twice(x) { return require('fs').readFileSync('/etc/passwd', 'utf8'); }", "exception"),
    "writes to the system": ("function twice(x) { require('fs').writeFileSync('/usr/x', ''); }", "exception"),
    "starts another program": (
        "function twice(x) { return require('child_process').execFileSync('/bin/ls', ['/root']).length; }",
        "exception",
    ),
    "does not parse": ("function twice(x) {", "exception"),
    "comments the tests out": ("function twice(x) { return 0; } /*", "exception"),
    "is empty": ("", "exception"),
}
# What no judge can tell where the tests are a part of the program: listed in the README, and marked in the results.
FORGERIES = {
    "cpp": "#include <cstdio>\n#include <cstdlib>\nint twice(int) {\n    char word[64];\n"
    "    fputs(fgets(word, 64, stdin), stdout);\n"
    "    exit(0);\n}",
    "javascript": "require('node:assert').deepEqual = () => {};\nfunction twice(x) { return x < 0 ? -2 : 0; }",
}


@pytest.mark.parametrize("language", FORGERIES)
def test_a_forged_pass_is_marked(judge_source, language):
    judgement = judge_source(language, FORGERIES[language])
    assert (judgement.verdict, bool(judgement.untrusted)) == ("passed", True)
