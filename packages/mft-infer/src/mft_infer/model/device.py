"""Where a model runs: the device, and how many threads on a CPU."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mft_infer.errors import InferError

if TYPE_CHECKING:
    import torch

DEVICES = "use auto, cpu, cuda or cuda:N"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def find_device(name: str) -> "torch.device":
    """The device of that name; `auto` is the machine's accelerator, the first of its kind, else the CPU."""
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InferError(f'unknown device "{name}"', fix=DEVICES) from error
    if device.type == "meta":
        raise InferError("the device meta has shapes and no numbers", fix=DEVICES)
    return device


def set_threads() -> None:
    """Use as many threads as this process has cores, unless OMP_NUM_THREADS says how many.

    torch counts the machine's, also where a container or `taskset` allows fewer, and is then many times slower.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), num_cores()))


def num_cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
