"""Go files: the package that a program belongs to, and its imports, of which Go takes neither too many nor too few."""

import re

_PACKAGE = re.compile(r"^\s*package\s+\w+[ \t]*\n?", re.MULTILINE)
_IMPORTS = re.compile(r"^import\s*(?:\(([^)]*)\)|((?:[\w.]+[ \t]+)?\"[^\"\n]+\"))[ \t]*;?[ \t]*\n?", re.MULTILINE)
_SPEC = re.compile(r"(?:([\w.]+)[ \t]+)?\"([^\"\n]+)\"")
_NOT_CODE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:[^\"\\\n]|\\.)*\"|`[^`]*`", re.DOTALL)
# What programs use without saying so; the last part of a path is the name that it is used by.
_STANDARD = (
    *("bufio", "bytes", "container/heap", "container/list", "crypto/md5", "encoding/hex", "errors", "fmt", "math"),
    *("math/big", "math/bits", "math/rand", "os", "reflect", "regexp", "sort", "strconv", "strings", "testing", "time"),
    *("unicode", "unicode/utf8"),
)


def go_file(code: str) -> str:
    """`code` as a file of the package main that imports what it uses, whatever it said of both.

    A head's imports that a program does not use, and those that it forgot, are no fault of the program's: a model that
    continues a prompt cannot change them.
    """
    specs = [spec for block, line in _IMPORTS.findall(code) for spec in _SPEC.findall(block or line)]
    body = _IMPORTS.sub("", _PACKAGE.sub("", code, count=1))
    used = _NOT_CODE.sub(" ", body)
    known = {alias or path.rpartition("/")[2]: (alias, path) for alias, path in specs}
    for path in _STANDARD:
        known.setdefault(path.rpartition("/")[2], ("", path))
    lines = [
        f'import {alias} "{path}"\n' if alias else f'import "{path}"\n'
        for name, (alias, path) in sorted(known.items())
        if name in ("_", ".") or re.search(rf"(?<![\w.]){re.escape(name)}\.[A-Z]", used)
    ]
    return f"package main\n\n{''.join(lines)}{body}"
