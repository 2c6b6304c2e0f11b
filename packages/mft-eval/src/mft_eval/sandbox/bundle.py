"""The code of a server, and of nursery and host, in one piece: what is handed its modules need not look for them."""

import functools
import importlib.util
import marshal
from importlib.abc import InspectLoader

_WIRE = (
    "mft_eval.wire.stdlib_values",
    "mft_eval.wire.codec",
    "mft_eval.wire.channel",
    "mft_eval.wire.exceptions",
    "mft_eval.wire.handle",
    "mft_eval.wire.operations",
    "mft_eval.wire.peer",
)
# Each in the order in which they import each other; the last has `main`.
NURSERY_MODULES = (
    *("mft_eval", "mft_eval.sandbox", "mft_eval.wire", *_WIRE),
    "mft_eval.sandbox.walls",
    "mft_eval.sandbox.protocol",
    "mft_eval.sandbox.system_calls",
    "mft_eval.sandbox.call_filter",
    "mft_eval.sandbox.file_rules",
    "mft_eval.sandbox.beside",
    "mft_eval.sandbox.program_side",
    "mft_eval.sandbox.script_host",
    "mft_eval.sandbox.program_host",
    "mft_eval.sandbox.rehearsal",
    "mft_eval.sandbox.nursery",
)
SERVER_MODULES = (
    *("mft_eval", "mft_eval.sandbox", "mft_eval.wire", "mft_eval.judging", *_WIRE),
    "mft_eval.sandbox.walls",
    "mft_eval.sandbox.protocol",
    "mft_eval.judging.deadlines",
    "mft_eval.judging.session",
    "mft_eval.judging.python_test",
    "mft_eval.judging.script_test",
    "mft_eval.judging.sandboxes",
    "mft_eval.judging.server",
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
module.main()
"""


def boot_code(package_parent: str) -> str:
    """The code for python -c; `package_parent` is the folder of this package as the sandbox sees it."""
    return BOOT.format(_LENGTH_BYTES, package_parent)


@functools.cache
def make_bundle(names: tuple[str, ...]) -> bytes:
    """What a process that starts by `boot_code` reads first: the code of these modules."""
    modules = []
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or not isinstance(spec.loader, InspectLoader):
            raise ModuleNotFoundError(name)
        modules.append((name, spec.submodule_search_locations is not None, spec.loader.get_code(name)))
    bundle = marshal.dumps(modules)
    return len(bundle).to_bytes(_LENGTH_BYTES, "little") + bundle
