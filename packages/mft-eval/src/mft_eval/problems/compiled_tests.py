"""Tests in a program's own language: how they become a part of it, and how their end is told from an early exit."""

import re

from mft_eval.problems.go_tests import go_test
from mft_eval.problems.problem import CompiledTest

_MAIN_CLASS = re.compile(r"class\s+(\w+)[^{]*\{(?:(?!class\s).)*?static\s+void\s+main\s*\(", re.DOTALL)
_RUST_TEST = re.compile(r"#\[test\]\s*(?:pub\s+)?fn\s+(\w+)")
# Each ends in code that hands back the word that waits on stdin, once the tests before it are through.
_PARTS = {
    "cpp": (
        "\n#undef NDEBUG\n#include <cassert>\n#define main mft_tests_main\n",
        "\n#undef main\n#include <cstdio>\nint main() {\n    int status = mft_tests_main();\n    char word[64];\n"
        "    if (status == 0 && std::fgets(word, sizeof word, stdin)) std::fputs(word, stdout);\n"
        "    return status;\n}\n",
    ),
    "java": (
        "\n",
        "\nclass MftTests {\n    public static void main(String[] words) throws Throwable {\n"
        "        TESTED.main(words);\n        java.io.InputStream in = System.in;\n"
        "        System.out.print(new String(in.readAllBytes()));\n        System.out.flush();\n    }\n}\n",
    ),
    # The whole is a module, whose test functions a main of our own runs.
    "rust": ("\n", "\npub fn mft_run() { TESTED }\n"),
    "javascript": (
        # console.assert only prints, and some benchmarks lean on it.
        "\nconsole.assert = (holds, ...words) => { if (!holds) throw new Error('assertion failed ' + words); };\n",
        "\n;process.stdout.write(require('fs').readFileSync(0, 'utf8'));\n",
    ),
}


def compiled_test(language: str, entry_point: str, tests: str, class_name: str = "", where: str = "") -> CompiledTest:
    """The test whose suffix is `tests` in `language`, of `_PARTS` or Go; in Java `entry_point` may be of a class."""
    if language == "go":
        return go_test(entry_point, tests, where)
    before, after = _PARTS[language]
    if language == "java":
        tests, tested = _java_tests(tests, class_name or entry_point)
        after = after.replace("TESTED", tested)
    if language == "rust":
        tests, tested = _rust_tests(tests)
        after = after.replace("TESTED", tested)
    if language == "cpp" and "}" in tests:
        # Only a function called main may end without a return.
        body, _, rest = tests.rpartition("}")
        tests = f"{body}return 0;\n}}{rest}"
    return CompiledTest(entry_point, before + tests + after)


def _java_tests(tests: str, class_name: str) -> tuple[str, str]:
    """The tests and the class that holds their main; a bare main becomes one of a class derived from the program's."""
    found = _MAIN_CLASS.search(tests)
    if found:
        return tests, found[1]
    return f"class MftTested extends {class_name} {{\n{tests.rstrip().removesuffix('}')}\n}}\n", "MftTested"


def _rust_tests(tests: str) -> tuple[str, str]:
    """The tests and what runs them: each function that is marked as a test, or their main."""
    names = _RUST_TEST.findall(tests)
    if not names:
        return tests, "main();"
    tests = _RUST_TEST.sub(r"pub fn \1", tests.replace("#[cfg(test)]", ""))
    module = re.search(r"\bmod\s+(\w+)\s*\{", tests)
    path = f"{module[1]}::" if module else ""
    return tests, " ".join(f"{path}{name}();" for name in names)
