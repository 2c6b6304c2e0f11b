"""Joining the processes of a run, and the engine that its config asks for."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mft_train.engine.deepspeed import DeepSpeedEngine, check_deepspeed_file, prefer_cpu
from mft_train.engine.fsdp import FsdpEngine
from mft_train.engine.plain import PlainEngine
from mft_train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator

    from mft_train.config.config import RunConfig
    from mft_train.engine.world import World
    from mft_train.model.compute import Compute

    Engine = PlainEngine | FsdpEngine | DeepSpeedEngine

# Engines that share something between processes, and what each shares.
SHARING = {"fsdp": "weights", "deepspeed": "moments"}


def start_engine(config: RunConfig, world: World, compute: Compute) -> Engine:
    """The engine of the run, its processes joined; raises TrainError if others run than `world` says."""
    accelerator = start_accelerator(config, world, compute)
    if config.distributed.engine == "fsdp":
        return FsdpEngine(accelerator, config.distributed, compute.dtype, config.method == "qlora")
    if config.distributed.engine == "deepspeed":
        return DeepSpeedEngine(accelerator, config)
    return PlainEngine(accelerator)


def description(engine: Engine, world: World, compute: Compute) -> str:
    """What runs, in words: processes, engine, device, type of numbers."""
    import torch.distributed

    machines = f" on {world.num_nodes} machines" if world.num_nodes > 1 else ""
    backend = torch.distributed.get_backend()
    return f"{world.world_size} processes{machines}: {engine.name}, {backend}, {compute.device.type}, {compute.dtype}"


@contextlib.contextmanager
def leaving_group() -> Iterator[None]:
    """Leaves the group of processes at the end, after an error too: gloo may abort a process that exits in one."""
    import torch.distributed

    try:
        yield
    finally:
        if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
            torch.distributed.destroy_process_group()


def check_engine(config: RunConfig, world_size: int) -> None:
    """Raises TrainError for settings that the engine cannot run."""
    name = config.distributed.engine
    if name not in SHARING:
        return
    if world_size == 1:
        raise TrainError(
            f"distributed.engine {name} shares {SHARING[name]} between processes, there is one", fix="--processes N"
        )
    if name == "fsdp" and config.method == "qlora" and config.lora.dora:
        raise TrainError(
            "lora.dora over a quantised base does not run with fsdp", fix="set lora.dora: false, or engine: deepspeed"
        )
    if config.optimizer != "adamw":
        raise TrainError(f"optimizer {config.optimizer} knows no shared {SHARING[name]}", fix="set optimizer: adamw")
    if config.compile:
        raise TrainError(f"compile is not tested with {name}", fix="set compile: false")
    if name == "deepspeed":
        check_deepspeed_file(config)


def start_accelerator(config: RunConfig, world: World, compute: Compute) -> Accelerator:
    """Joins the processes of the run; raises TrainError if other processes run than `world` says."""
    from accelerate import Accelerator
    from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs

    on_cpu = compute.device.type == "cpu"
    settings: dict[str, Any] = {"timeout": timedelta(seconds=config.timeout_seconds)}
    if on_cpu:
        prefer_cpu()
    elif config.distributed.engine == "fsdp" and config.distributed.offload_parameters:
        settings["backend"] = "cuda:nccl,cpu:gloo"  # shares that wait in host memory are gathered there
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="bf16" if compute.dtype == "bfloat16" else "no",
        # Its cache would keep a copy of every trained weight until the end of a forward pass, which uses each once.
        kwargs_handlers=[InitProcessGroupKwargs(**settings), AutocastKwargs(cache_enabled=False)],
    )
    if on_cpu:
        # accelerate numbers it as if it were one of several: weights that move from "cpu" to "cpu:0" are copied.
        state: Any = accelerator.state
        state.device = compute.device
    found = accelerator.distributed_type.value
    # A launcher's only process is a group of one.
    expected = {"MULTI_CPU" if on_cpu else "MULTI_GPU"} | ({"NO"} if world.world_size == 1 else set())
    ranks = (accelerator.process_index, accelerator.num_processes, accelerator.local_process_index)
    if found not in expected or ranks != (world.rank, world.world_size, world.local_rank):
        raise TrainError(
            f"{world} was asked for, but accelerate runs rank {ranks[0]} of {ranks[1]}, local rank {ranks[2]}, "
            f"as {found}",
            fix="look at the variables that begin with ACCELERATE_ in the environment",
        )
    return accelerator
