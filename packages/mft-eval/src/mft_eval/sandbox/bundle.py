"""The host's code in one piece: a sandbox that is handed its modules need not look for them."""

import importlib.util
import marshal
from pathlib import Path

# In the order in which they import each other.
_MODULES = (
    "mft_eval",
    "mft_eval.sandbox",
    "mft_eval.wire",
    "mft_eval.wire.stdlib_values",
    "mft_eval.wire.codec",
    "mft_eval.wire.channel",
    "mft_eval.wire.exceptions",
    "mft_eval.wire.handle",
    "mft_eval.wire.operations",
    "mft_eval.wire.peer",
    "mft_eval.sandbox.beside",
    "mft_eval.sandbox.program_side",
    "mft_eval.sandbox.program_host",
)
_LENGTH_BYTES = 4
# What python -c runs: makes the modules from stdin, then serves. Packages keep a path, for what is imported later.
BOOT = """
import marshal, os, sys
def read(count):
    parts = b""
    while len(parts) < count:
        part = os.read(0, count - len(parts))
        if not part:
            sys.exit()
        parts += part
    return parts
for name, is_package, code in marshal.loads(read(int.from_bytes(read({0}), "little"))):
    module = sys.modules[name] = type(sys)(name)
    if is_package:
        module.__path__ = [{1!r} + "/" + name.replace(".", "/")]
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
        module.__package__ = name if is_package else parent
    exec(code, vars(module))
sys.modules["mft_eval.sandbox.program_host"].main()
"""


def boot_code(package_parent: str) -> str:
    """The code for python -c; `package_parent` is the folder of this package as the sandbox sees it."""
    return BOOT.format(_LENGTH_BYTES, package_parent)


def make_bundle() -> bytes:
    """What a starting host reads first: its modules' code, without docstrings so that a pipe holds it all."""
    modules = []
    for name in _MODULES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name)
        source = Path(spec.origin).read_bytes()
        code = compile(source, name, "exec", dont_inherit=True, optimize=2)
        modules.append((name, spec.submodule_search_locations is not None, code))
    bundle = marshal.dumps(modules)
    return len(bundle).to_bytes(_LENGTH_BYTES, "little") + bundle
