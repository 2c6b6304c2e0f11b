"""Inputs that the benchmarks share, and the table of ratios at the end of a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parents[1]
RATIOS = pytest.StashKey()


def pytest_configure(config):
    config.stash[RATIOS] = []


@pytest.fixture
def report(request):
    """Adds a line to the table of ratios: what was measured, its figure, its goal."""
    lines = request.config.stash[RATIOS]

    def report(name, figure, goal=""):
        lines.append((name, figure, goal))

    return report


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash[RATIOS]
    if lines:
        terminalreporter.section("ratios and rates")
        width = max(len(name) for name, _, _ in lines)
        for name, figure, goal in lines:
            terminalreporter.write_line(f"{name:{width}}  {figure:>14}  {goal}")


@pytest.fixture(scope="session")
def base_model():
    """The embedded base model, made if it is not there."""
    path = ROOT / ".cache" / "base-model"
    subprocess.run([sys.executable, ROOT / "tools" / "make_base_model.py", path], check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.fixture(scope="session")
def task_files(tmp_path_factory):
    """JSONL files by task: those below BENCHMARK_DATA (a folder of task folders), or the embedded demo tasks."""
    root = os.environ.get("BENCHMARK_DATA")
    if root is None:
        out = tmp_path_factory.mktemp("demo") / "demo"
        subprocess.run([sys.executable, ROOT / "tools" / "make_demo_tasks.py", out], check=True, capture_output=True)
        root = out / "tasks"
    folders = sorted(path for path in Path(root).iterdir() if path.is_dir())
    tasks = {folder.name: sorted(folder.glob("part-*.jsonl")) for folder in folders}
    return {name: files for name, files in tasks.items() if files}
