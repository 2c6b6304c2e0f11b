"""What identifies the weights in safetensors files: names, types, shapes and the first bytes of every tensor."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import orjson

from mft_merge.files.tensor_file import StoredTensor

SAMPLE_BYTES = 4096


def tensors_fingerprint(tensors: Iterable[StoredTensor]) -> str:
    """The sha256 over all tensors in the order of their names, whatever files they lie in.

    Of each the line `["name","dtype",[shape]]` as JSON without spaces and a newline, then the first 4,096 bytes of its
    payload (or all, if fewer) go into it. Training changes the first bytes of practically every tensor; reading no more
    keeps it instant for a model of any size.
    """
    digest = hashlib.sha256()
    streams: dict[Path, BinaryIO] = {}
    try:
        for tensor in sorted(tensors, key=lambda tensor: tensor.name):
            if tensor.path not in streams:
                streams[tensor.path] = tensor.path.open("rb")
            stream = streams[tensor.path]
            digest.update(orjson.dumps([tensor.name, tensor.dtype, tensor.shape]) + b"\n")
            stream.seek(tensor.offset)
            digest.update(stream.read(min(SAMPLE_BYTES, tensor.num_bytes)))
    finally:
        for stream in streams.values():
            stream.close()
    return digest.hexdigest()
