"""Tests in a program's own language: how they become a part of it, and how their end is told from an early exit."""

from mft_eval.problems.problem import CompiledTest

# Each ends in code that hands back the word that waits on stdin, once the tests before it are through.
_PARTS = {
    "cpp": (
        "\n#undef NDEBUG\n#include <cassert>\n#define main mft_tests_main\n",
        "\n#undef main\n#include <cstdio>\nint main() {\n    int status = mft_tests_main();\n    char word[64];\n"
        "    if (status == 0 && std::fgets(word, sizeof word, stdin)) std::fputs(word, stdout);\n"
        "    return status;\n}\n",
    ),
    "javascript": (
        # console.assert only prints, and some benchmarks lean on it.
        "\nconsole.assert = (holds, ...words) => { if (!holds) throw new Error('assertion failed ' + words); };\n",
        "\n;process.stdout.write(require('fs').readFileSync(0, 'utf8'));\n",
    ),
}


def compiled_test(language: str, entry_point: str, tests: str) -> CompiledTest:
    """The test whose suffix is `tests` in `language`, a key of `_PARTS`."""
    before, after = _PARTS[language]
    if language == "cpp" and "}" in tests:
        # Only a function called main may end without a return.
        body, _, rest = tests.rpartition("}")
        tests = f"{body}return 0;\n}}{rest}"
    return CompiledTest(entry_point, before + tests + after)
