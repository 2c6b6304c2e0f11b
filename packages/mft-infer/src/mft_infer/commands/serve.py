"""A server with OpenAI's interface over a model directory: transformers' own, or vLLM's."""

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass

from mft_infer.errors import InferError
from mft_infer.model.model_dir import find_model

TRANSFORMERS = "from transformers.cli.transformers import main; main()"


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options of `mft-infer serve`, under the names that they have there."""

    server: str
    host: str
    port: int
    dtype: str
    device: str


def serve(model: str, options: ServeOptions) -> None:
    """Become the server; does not return."""
    source = find_model(model, None)
    if source.adapter is not None:
        raise InferError(f"{model} is an adapter", fix="make a model of it with mft-merge and serve that")
    command = {"transformers": _transformers, "vllm": _vllm}[options.server](source.model, options)
    os.execvp(command[0], command)  # noqa: S606  the arguments are a list, no shell reads them


def _transformers(model: str, options: ServeOptions) -> list[str]:
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")):
        raise InferError("the server of transformers is not complete", fix='pip install "mft-infer[serving]"')
    command = [sys.executable, "-c", TRANSFORMERS, "serve", model, "--host", options.host, "--port", str(options.port)]
    return [*command, "--dtype", _dtype(options), "--device", options.device]


def _dtype(options: ServeOptions) -> str:
    """As `generate` has it: float32 on a CPU, where `auto` would take the model's own."""
    from mft_infer.model.device import find_device

    is_cpu = find_device(options.device).type == "cpu"
    return "float32" if options.dtype == "auto" and is_cpu else options.dtype


def _vllm(model: str, options: ServeOptions) -> list[str]:
    program = shutil.which("vllm")
    if program is None:
        raise InferError("vLLM is not installed", fix="pip install vllm, or use --server transformers")
    # Without the last flag vLLM takes settings from the generation config that nobody asked for.
    served = [program, "serve", model, "--served-model-name", model, "--generation-config", "vllm"]
    return [*served, "--host", options.host, "--port", str(options.port), "--dtype", options.dtype]
