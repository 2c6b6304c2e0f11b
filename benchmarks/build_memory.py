"""Builds a synthetic task of many gigabytes and prints the peak memory of the command and of its largest worker."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click


def write_task(path: Path, sources: list[Path], num_bytes: int) -> None:
    """Repeats the lines of `sources` up to `num_bytes`, each copy with a number in it so that none is like another."""
    lines = [line for source in sources for line in source.read_bytes().splitlines()]
    written = copy = 0
    with path.open("wb") as handle:
        while written < num_bytes:
            mark = f'"content": "{copy}: '.encode()
            for line in lines:
                written += handle.write(line.replace(b'"content": "', mark, 1) + b"\n")
            copy += 1


def peak_of_tree(process: subprocess.Popen) -> dict[str, int]:
    """Largest resident size in MiB of the command's own process and of any below it, watched until it ends."""
    peaks = {"command": 0, "worker": 0}
    while process.poll() is None:
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            except OSError:
                continue
            pid, parent = int(fields["Pid"]), int(fields["PPid"])
            if process.pid in (pid, parent) and "VmHWM" in fields:
                kind = "command" if pid == process.pid else "worker"
                peaks[kind] = max(peaks[kind], int(fields["VmHWM"].split()[0]) // 1024)
        time.sleep(0.5)
    return peaks


@click.command()
@click.argument("task_folder", type=click.Path(exists=True, path_type=Path))
@click.option("--tokenizer", required=True, type=click.Path(exists=True, path_type=Path), help="Base model directory.")
@click.option("--gib", type=float, default=2.0, show_default=True, help="Size of the synthetic task.")
@click.option("--workers", type=int, default=2, show_default=True, help="Worker processes.")
def main(task_folder: Path, tokenizer: Path, gib: float, workers: int) -> None:
    """Build a task of GIB gibibytes made from the JSONL files of TASK_FOLDER and print what it took."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        task = Path(folder, "task.jsonl")
        write_task(task, sorted(task_folder.glob("*.jsonl")), int(gib * 2**30))
        command = [Path(sys.executable).with_name("mft-data"), "build", f"task={task}", Path(folder, "dataset")]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--tokenizer", tokenizer, "--workers", str(workers)], stdout=subprocess.DEVNULL
        )
        peaks = peak_of_tree(process)
        seconds = time.perf_counter() - start
        if process.returncode:
            sys.exit(process.returncode)
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    click.echo(
        f"{gib:g} GiB in {seconds:.0f} s: command {peaks['command']} MiB, largest worker {peaks['worker']} MiB, "
        f"largest of all by the kernel's count {largest} MiB"
    )


if __name__ == "__main__":
    main()
