"""Tests and figures of a machine with a GPU; `tools/gpu_check` starts it and says how.

Wheels are installed into a folder of this process that goes when it ends. Tests run in a process of their own, and so
does each pair of model and method: an error of the device ends one of them only.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_figures import METHODS, SIZES, TINY_SIZES

ROOT = Path(__file__).parent.parent
NEEDED = ("mft_train", "accelerate", "peft", "pydantic", "orjson", "click")
TESTS_SHARE = 0.4  # of the time, at most
HEADINGS = ("model", "method", "loop", "tokens/s", "MFU", "of its GEMM", "peak memory", "checkpointing", "loss")


def main() -> int:
    """Runs the check; 0 unless a test or a figure failed."""
    options = parse_options()
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        try:
            environment = prepare(options.wheels, Path(folder) / "site")
        except CheckError as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
        machine = describe(options.device, environment)
        tell(" · ".join(f"{name} {value}" for name, value in machine.items() if value is not None))
        tests = run_tests(environment, deadline)
        tell(f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")
        figures, skipped = measure(options, machine["device"], Path(folder), environment, deadline)
    failures = [*tests.pop("failures"), *(each["error"] for each in figures if "error" in each)]
    report = {"machine": machine, "tests": tests, "figures": figures, "skipped": skipped, "failures": failures}
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return 1 if failures else 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tools/gpu_check", description="Tests and figures of a machine with a GPU.")
    parser.add_argument("--wheels", type=Path, help="folder that tools/gpu_wheels made; not needed where mft-train is")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--tiny", action="store_true", help="models of two layers: shows that the check itself runs")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: CUDA where there is a device")
    parser.add_argument("--minutes", type=float, default=9.5, help="most minutes that all of it may take")
    return parser.parse_args()


class CheckError(Exception):
    """What keeps the check from starting."""


def prepare(wheels: Path | None, site: Path) -> dict[str, str]:
    """The environment of the processes that follow, with the wheels' packages in it; raises CheckError."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise CheckError(f"{sys.executable} has no {name}, set PYTHON to one that has torch and transformers")
    if wheels is None:
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise CheckError(
                f"{sys.executable} has no {missing[0]}, give --wheels DIR, a folder that `tools/gpu_wheels DIR` made"
            )
        return environment
    # torchvision belongs to one torch: that of this machine is the right one.
    files = [
        str(path)
        for path in sorted(wheels.glob("*.whl"))
        if not (path.name.startswith("torchvision-") and importlib.util.find_spec("torchvision"))
    ]
    if not files:
        raise CheckError(f"{wheels} holds no wheels, make some with `tools/gpu_wheels DIR`")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--no-warn-script-location", "--target", str(site)]
    done = subprocess.run([*command, *files], check=False, capture_output=True, text=True)
    if done.returncode:
        raise CheckError(f"the wheels cannot be installed: {last_line(done.stderr)}")
    before = os.environ.get("PYTHONPATH")
    return environment | {"PYTHONPATH": os.pathsep.join([str(site), *([before] if before else [])])}


def describe(device: str, environment: dict[str, str]) -> dict[str, object]:
    """The machine: device, its name and memory, and the versions that matter."""
    code = (
        "import json, importlib.metadata as m, importlib.util as u, torch;"
        "has = torch.cuda.is_available();"
        "v = lambda name: m.version(name) if u.find_spec(name.replace('-', '_')) else None;"
        "print(json.dumps({'cuda': has, 'name': torch.cuda.get_device_name() if has else None,"
        "'memory_gib': round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if has else None,"
        "'torch': torch.__version__, 'transformers': v('transformers'), 'peft': v('peft'),"
        "'bitsandbytes': v('bitsandbytes'), 'flash_attn': v('flash-attn')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout)
    has_cuda = found.pop("cuda")
    return {"device": "cuda" if has_cuda and device == "auto" else "cpu", **found}


def run_tests(environment: dict[str, str], deadline: float) -> dict[str, object]:
    """The outcome of every test that is marked `gpu`, with a line for each kind of skip and each failure."""
    marked = [path for path in ROOT.glob("packages/*/tests/**/test_*.py") if "mark.gpu" in path.read_text()]
    files = [str(path.relative_to(ROOT)) for path in sorted(marked)]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-q", "--tb=line", *files]
    limit = TESTS_SHARE * (deadline - time.monotonic())
    with tempfile.TemporaryDirectory(prefix="gpu-check-tests-") as folder:
        outcome = Path(folder) / "outcome.xml"
        try:
            done = subprocess.run(
                [*command, f"--junit-xml={outcome}"],
                check=False,
                capture_output=True,
                text=True,
                cwd=ROOT,
                env=environment,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            failure = f"the tests were not done after {limit:.0f} seconds"
            return {"passed": 0, "failed": 1, "skipped": 0, "skips": {}, "failures": [failure]}
        if not outcome.is_file():
            failure = f"pytest did not run: {last_line(done.stdout + done.stderr)}"
            return {"passed": 0, "failed": 1, "skipped": 0, "skips": {}, "failures": [failure]}
        return read_outcome(outcome)


def read_outcome(path: Path) -> dict[str, object]:
    """Counts, reasons of skips and failures from pytest's own XML."""
    from xml.etree import ElementTree as Tree

    cases = list(Tree.parse(path).getroot().iter("testcase"))
    skips: dict[str, int] = {}
    failures: dict[str, str] = {}
    for case in cases:
        for skip in case.iter("skipped"):
            skips[skip.get("message", "")] = skips.get(skip.get("message", ""), 0) + 1
        for failure in (*case.iter("failure"), *case.iter("error")):
            name = f"{case.get('classname')}::{case.get('name')}"
            failures.setdefault(name, f"{name}: {first_line(failure.get('message', ''))}")
    skipped = sum(skips.values())
    passed = len(cases) - skipped - len(failures)
    counts = {"passed": passed, "failed": len(failures), "skipped": skipped}
    return counts | {"skips": skips, "failures": list(failures.values())}


def measure(
    options: argparse.Namespace, device: str, folder: Path, environment: dict[str, str], deadline: float
) -> tuple[list[dict], list[str]]:
    """Figures of every pair of size and method, and what was skipped, with the reason."""
    if device == "cpu" and not options.tiny:
        return [], ["all figures: no CUDA device (`--tiny --device cpu` runs them with models of two layers)"]
    sizes = TINY_SIZES if options.tiny else SIZES
    # One process for each pair keeps an error of the device to itself; without a device one for all is enough.
    pairs = [(size, method) for size in sizes for method in METHODS]
    groups = [pairs] if device == "cpu" else [[pair] for pair in pairs]
    if options.tiny:
        environment = environment | {"OMP_NUM_THREADS": "1"}  # tiny products gain nothing from threads
    figures: list[dict] = []
    skipped: list[str] = []
    for group in groups:
        left = deadline - time.monotonic()
        names = ", ".join(f"{size} {method}" for size, method in group)
        if left < 20:
            skipped.append(f"{names}: no time left")
            continue
        arguments = [f"{size}:{method}" for size, method in group]
        command = [sys.executable, str(ROOT / "tools" / "gpu_figures.py"), device, str(folder), f"{left:.0f}"]
        tell(f"measuring {names}")
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        try:
            stdout, stderr = process.communicate(timeout=left)
            trouble = f"ended with exit code {process.returncode}: {last_line(stderr)}" if process.returncode else None
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            trouble = None
            skipped.append(f"{names}: what is missing of it had no time left")
        for line in stdout.splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # what a library prints
                answer = json.loads(line)
                skipped.append(answer["skipped"]) if "skipped" in answer else figures.append(answer)
        if trouble:
            figures.append({"model": group[0][0], "method": group[0][1], "error": f"{names} {trouble}"})
    return figures, skipped


def as_text(report: dict) -> str:
    """The report for a person: a table of figures, then what was skipped and what failed."""
    rows = [HEADINGS]
    rows += [row_of(each) for each in report["figures"] if "error" not in each]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = lines if len(rows) > 1 else []
    lines += [f"skipped: {count} tests: {reason}" for reason, count in report["tests"]["skips"].items()]
    lines += [f"skipped: {reason}" for reason in report["skipped"]]
    lines += [f"failed: {failure}" for failure in report["failures"]]
    return "\n".join(lines)


def row_of(each: dict) -> tuple[str, ...]:
    """One line of the table."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{share:.1%}"

    return (
        each["model"],
        each["method"],
        each["loop"],
        f"{each['tokens_per_second']:,.0f}",
        percent(each["mfu"]),
        percent(each["gemm_share"]),
        f"{each['peak_bytes'] / 2**30:.2f} GiB",
        "on" if each["gradient_checkpointing"] else "off",
        f"{each['loss']:.4f}",
    )


def tell(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def first_line(text: str) -> str:
    """The first line of a message."""
    return (text.strip().splitlines() or [""])[0]


def last_line(text: str) -> str:
    """The last line of what a program printed."""
    return (text.strip().splitlines() or ["nothing"])[-1]


if __name__ == "__main__":
    sys.exit(main())
