"""A base on the disk whose weights are those given back from quantisation, for a live model that is run from there."""

from dataclasses import replace
from pathlib import Path

from mft_merge.files.json_file import write_json
from mft_merge.output.model_files import write_index
from mft_merge.output.shard_writer import shard_header, write_shard
from mft_merge.planning.plan import MergePlan, OutputTensor
from mft_merge.sources.base_model import read_base_model


def write_dequantized(base_dir: Path, plan: MergePlan, out_dir: Path) -> None:
    """Write the base with the tensors that the plan gives back from quantisation so given back, in float32."""
    base = read_base_model(base_dir)
    changed = {tensor.name: tensor for tensor in plan.tensors() if tensor.is_dequantized}

    def output(name: str) -> OutputTensor:
        source = base.tensors[name]
        copy = OutputTensor(name, source, source.dtype, {}, (), ())
        if name not in changed:
            return copy
        return replace(copy, dtype="F32", quantization=changed[name].quantization, is_dequantized=True)

    shards = {shard.path.name: [output(name) for name in shard.tensors] for shard in base.shards}
    out_dir.mkdir()
    for name, tensors in shards.items():
        write_shard(out_dir / name, shard_header(name, tensors, base), tensors, lambda _: None)
    write_index(MergePlan(shards, {}), base, out_dir)
    write_json(out_dir / "config.json", base.config)
