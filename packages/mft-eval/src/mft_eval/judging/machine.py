"""What of the sandbox works on this machine: each layer is tried by a program that would get through without it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mft_eval.errors import EvalError
from mft_eval.judging.judgement import OUTSIDE, Limits, Ruling
from mft_eval.judging.languages import LANGUAGES, toolchain_path
from mft_eval.judging.pool import JudgePool
from mft_eval.judging.requests import make_request
from mft_eval.problems.problem import Problem, PythonTest
from mft_eval.sandbox.walls import NAMESPACES

_ANSWER = "def answer(): return 42\n"
_LIMITS = Limits(10.0, 256)
# Kernel setting -> the value that lets sandboxes start, and the command that sets it.
_SETTINGS = {
    "user/max_user_namespaces": (lambda value: int(value) > 0, "sysctl -w user.max_user_namespaces=65536"),
    "kernel/unprivileged_userns_clone": (lambda value: value == "1", "sysctl -w kernel.unprivileged_userns_clone=1"),
    "kernel/apparmor_restrict_unprivileged_userns": (
        lambda value: value == "0",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
}
# Layer -> a function whose answer is 42 where the layer holds.
_LAYERS = {
    "network": "import socket\ndef answer():\n    try: socket.create_connection(('127.0.0.1', 22), 1)\n"
    "    except OSError: pass\n    else: return 0\n"
    "    try: names = [name for _, name in socket.if_nameindex()]\n    except PermissionError: return 42\n"
    "    return 42 if names == ['lo'] else 0\n",
    "files": "import glob, os\ndef can_read(path):\n    try: open(path).close()\n    except OSError: return False\n"
    "    return True\ndef answer():\n"
    "    hidden = not any(map(can_read, ('/etc/passwd', '/proc/self/stat', '/sys/kernel/uevent_seqnum')))\n"
    # A home may hold the interpreter and nothing else.
    "    for home in [*glob.glob('/home/*'), *glob.glob('/root')]:\n        try: hidden &= len(os.listdir(home)) < 2\n"
    "        except PermissionError: pass\n"
    "    try: open('/usr/mft-eval-probe', 'w')\n    except OSError: return 42 if hidden else 0\n    return 0\n",
    "processes": "import os\ndef answer():\n    return 42 if os.getpid() < 10 and os.getuid() != 0 else 0\n",
    "memory limit": "def answer():\n    try: bytearray(2**30)\n    except MemoryError: return 42\n    return 0\n",
    "environment": "import os\ndef answer():\n    known = 'PYTHONHASHSEED LANG HOME TMPDIR PATH PWD LC_CTYPE'\n"
    "    return 42 if set(os.environ) <= set(known.split()) else 0\n",
    "further namespaces": "import ctypes\ndef answer(): return 42 if ctypes.CDLL(None).unshare(0x10000000) else 0\n",
    "system call filter": "import ctypes\ndef answer(): return 42 if ctypes.CDLL(None).ptrace(0, 0, 0, 0) else 0\n",
    # The last, since it leaves no process to others.
    "process limit": "import os\ndef answer():\n    try:\n        for _ in range(64):\n"
    "            if os.fork() == 0:\n                import time\n                time.sleep(9)\n"
    "    except BlockingIOError: return 42\n    return 0\n",
}
_DISK_LIMIT = "disk limit"
# What is missing where programs run like any other.
NO_SANDBOX = tuple(name for name in (*_LAYERS, _DISK_LIMIT) if name != "memory limit")
_NEWER_KERNEL = "apt-get install --only-upgrade linux-image-$(dpkg --print-architecture) && reboot"
_LANDLOCK_ON = "sed -i 's/^GRUB_CMDLINE_LINUX=\"/&lsm=landlock,yama,apparmor,bpf /' /etc/default/grub && update-grub"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `mend` is the command that mends it, empty where there is none or no need."""

    name: str
    is_ok: bool
    state: str
    mend: str = ""


def check_layers(pool: JudgePool) -> None:
    """Raises unless a program can be judged on this machine behind every layer."""
    if _try(pool, _every_layer())["verdict"] == "passed":
        return
    if not starts(pool):
        what = f"programs cannot be judged on this machine: {why_not(pool)}"
        fix = "allow unprivileged user namespaces: mft-eval doctor says how; or go without with --isolation best-effort"
        raise EvalError(what, fix=fix)
    missing = missing_layers(pool)
    if missing:
        what = f"the sandbox does not hold on this machine: {', '.join(missing)} missing"
        raise EvalError(what, fix="see mft-eval doctor, or go without with --isolation best-effort")


def starts(pool: JudgePool) -> bool:
    """Whether a sandbox starts."""
    return _try(pool, _ANSWER)["verdict"] == "passed"


def why_not(pool: JudgePool) -> str:
    """What a sandbox that does not start says."""
    outcome = _try(pool, _ANSWER)
    return (outcome.get("output", "").strip().splitlines() or [outcome["detail"] or outcome["verdict"]])[-1]


def missing_layers(pool: JudgePool) -> tuple[str, ...]:
    """The layers that do not hold behind the pool's walls, in which a sandbox starts."""
    tried = [found.name for found in layer_findings(pool) if not found.is_ok]
    return tuple(tried if pool.walls == NAMESPACES else [*tried, _DISK_LIMIT])


def _every_layer() -> str:
    """A program that answers as each layer's does, where all of them hold."""
    programs = [program.replace("def answer()", f"def layer_{name}()") for name, program in enumerate(_LAYERS.values())]
    calls = ", ".join(f"layer_{name}" for name in range(len(programs)))
    return "".join(programs) + f"def answer(): return 42 if all(layer() == 42 for layer in ({calls})) else 0\n"


def _try(pool: JudgePool, program: str) -> dict[str, Any]:
    problem = Problem("check", (), "", PythonTest("answer", "assert answer() == 42\n"), "")
    request = make_request(problem, program, Ruling(OUTSIDE, may_use_objects=False), _LIMITS)
    ((_, outcome),) = pool.judge_all([("check", request)], num_workers=1)
    return outcome


def kernel_findings() -> list[Finding]:
    """The settings that decide whether a sandbox can start, of those that this kernel has."""
    findings = []
    for name, (is_fine, mend) in _SETTINGS.items():
        path = Path("/proc/sys") / name
        if path.exists():
            value = path.read_text().strip()
            is_ok = is_fine(value)
            findings.append(Finding(name.replace("/", "."), is_ok, value, "" if is_ok else mend))
    return findings


def layer_findings(pool: JudgePool) -> list[Finding]:
    """Each layer of the sandbox, tried."""
    if not starts(pool):
        mend = next((found.mend for found in kernel_findings() if not found.is_ok), _NEWER_KERNEL)
        if Path("/.dockerenv").exists():
            mend = (
                "docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined --cap-add SYS_ADMIN"
            )
        return [Finding("sandbox", False, why_not(pool), mend)]
    findings = [Finding("sandbox", True, "starts")]
    for name, program in _LAYERS.items():
        outcome = _try(pool, program)
        is_ok = outcome["verdict"] == "passed"
        state = "holds" if is_ok else f"does not hold: {outcome['verdict']}"
        findings.append(Finding(name, is_ok, state, "" if is_ok else _NEWER_KERNEL))
    return findings


def landlock_finding() -> Finding:
    """What best-effort isolation has where namespaces do not work."""
    # It loads ctypes, which a run in namespaces can do without.
    from mft_eval.sandbox.file_rules import landlock_version

    version = landlock_version()
    state = f"version {version}, for --isolation best-effort" if version else "not in this kernel"
    return Finding("Landlock", bool(version), state, "" if version else _LANDLOCK_ON)


def toolchain_findings() -> list[Finding]:
    """The languages that programs can be judged in here; a missing one hinders only its own problems."""
    packages = {"g++": "apt-get install g++", "node": "apt-get install nodejs"}
    packages |= {
        "javac": "apt-get install default-jdk-headless",
        "rustc": "apt-get install rustc",
        "go": "apt-get install golang-go",
    }
    findings = []
    for language in LANGUAGES.values():
        path = toolchain_path(language)
        mend = "" if path else packages[language.command]
        findings.append(Finding(language.name, path is not None, path or f"no {language.command}", mend))
    return findings
