"""The kernels of attention on CUDA: their choice on any machine, by tensors without values; their numbers on a GPU."""

import importlib.util
import json
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from mft_train.cli import main
from mft_train.model import segment_attention
from mft_train.model.isolation import check_isolation
from mft_train.model.segment_attention import varlen_kernel
from mft_train.rows.packed_batch import Conversations, Row, pack_rows

VARLEN = "torch_attn._varlen_attn.default"
LENGTHS = (37, 1, 90, 128)
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None
needs_varlen = pytest.mark.skipif(varlen_kernel() is None, reason="this torch has no attention over many lengths")
needs_flash = pytest.mark.skipif(not HAS_FLASH, reason="needs the flash-attn package")
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ATTENTIONS = [
    pytest.param("segments", marks=[*on_gpu, needs_varlen]),
    pytest.param("flash_attention_2", marks=[*on_gpu, needs_flash]),
]
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


class Operators(TorchDispatchMode):
    """How often each operator runs within the context."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def packed_batch(lengths=LENGTHS):
    ids = np.random.default_rng(0).integers(0, 97, sum(lengths))
    return pack_rows([Row(ids, np.ones(len(ids)), np.array(lengths), 0)])


def llama(attention, num_layers=2, dtype=torch.float32):
    """A random model, made on the device of the context that it is called in."""
    from transformers import LlamaConfig, LlamaForCausalLM

    segment_attention.register()
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=97, num_hidden_layers=num_layers, initializer_range=0.1, **SHAPE)
    return LlamaForCausalLM._from_config(config, attn_implementation=attention, dtype=dtype)


@needs_varlen
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_in_bfloat16_runs_the_kernel_in_every_layer(dtype):
    """Under autocast a fully trained model has float32 weights, and so float32 queries after rotary positions."""
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with torch.device("cuda"):
            model = llama("segments", num_layers=3, dtype=dtype)
        batch = packed_batch().to(torch.device("cuda"))
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", dtype == torch.float32)  # torch.autocast itself asks for a device
        try:
            with Operators() as operators:
                logits = model(**batch.forward_keywords()).logits
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert (operators.counts[VARLEN], logits.shape, logits.dtype) == (3, (1, 252, 97), torch.bfloat16)
    assert not [name for name in operators.counts if "scaled_dot_product" in name or "_local_scalar" in name]


@needs_varlen
@pytest.mark.parametrize(
    ("heads", "width", "value_width", "window"),
    [(4, 64, 64, None), (2, 64, 64, 5), (4, 96, 64, None), (4, 256, 256, 3)],
)
def test_the_kernel_is_given_what_it_takes(heads, width, value_width, window):
    """Grouped heads, windows, and the narrower values of latent attention."""
    with FakeTensorMode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        query = torch.empty(1, 4, 12, width, device="cuda", dtype=torch.bfloat16)
        key = torch.empty(1, heads, 12, width, device="cuda", dtype=torch.bfloat16)
        value = torch.empty(1, heads, 12, value_width, device="cuda", dtype=torch.bfloat16)
        borders = torch.empty(4, device="cuda", dtype=torch.int32)
        with Operators() as operators:
            out, _ = segment_attention.segment_attention(
                torch.nn.Identity(),
                query,
                key,
                value,
                None,
                cu_seq_lens_q=borders,
                max_length_q=6,
                sliding_window=window,
                scaling=0.3,
            )
    assert (out.shape, out.dtype, operators.counts[VARLEN]) == ((1, 12, 4, value_width), torch.bfloat16, 1)


def test_autocast_gives_the_type_of_its_own_products():
    query = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = segment_attention.segment_attention(torch.nn.Identity(), query, query, query, None)
    outside, _ = segment_attention.segment_attention(torch.nn.Identity(), query, query, query, None)
    assert (inside.dtype, outside.dtype) == (torch.bfloat16, torch.float32)
    assert (inside - outside).abs().max() < 2e-2


def tensors(heads, width, value_width):
    """Random query, key and value of the row of LENGTHS, exact in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, width), (heads, width), (heads, value_width)]
    length = sum(LENGTHS)
    drawn = [torch.randn(1, number, length, size, generator=generator) for number, size in shapes]
    return [tensor.bfloat16() for tensor in drawn]


def attend(parts, **keywords):
    """The attention's output and its gradients, of a weighted sum of it."""
    query, key, value = (part.detach().clone().requires_grad_() for part in parts)
    borders = np.concatenate([[0], np.cumsum(LENGTHS)])
    out, _ = segment_attention.segment_attention(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        cu_seq_lens_q=torch.tensor(borders, dtype=torch.int32).to(query.device),
        max_length_q=max(LENGTHS),
        conversations=Conversations(tuple(borders.tolist())),
        **keywords,
    )
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    (out * weights).sum().backward()
    return [out.detach(), query.grad, key.grad, value.grad]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(
    ("heads", "width", "value_width", "keywords"),
    [
        (4, 64, 64, {}),
        (2, 64, 64, {"sliding_window": 5, "scaling": 0.3}),
        (4, 96, 64, {}),
        (2, 128, 128, {}),
        (2, 64, 64, {"softcap": 2.0}),
    ],
)
def test_attention_on_a_gpu_has_the_values_and_gradients_of_float64_on_a_cpu(
    heads, width, value_width, keywords, dtype, tolerance
):
    parts = tensors(heads, width, value_width)
    expected = attend([part.double() for part in parts], **keywords)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with Operators() as operators:
            got = attend([part.to("cuda", dtype) for part in parts], **keywords)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    is_kernel = dtype == torch.bfloat16 and "softcap" not in keywords and varlen_kernel() is not None
    assert operators.counts[VARLEN] == is_kernel
    for own, plain in zip(got, expected, strict=True):
        assert (own.cpu().double() - plain).abs().max() <= tolerance * plain.abs().max()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_conversations_do_not_see_each_other_on_a_gpu(attention, dtype):
    with torch.device("cuda"):
        model = llama(attention, dtype=dtype)
    with torch.autocast("cuda", torch.bfloat16):
        check_isolation(model, "bfloat16")


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_layer_waits_for_the_device(attention):
    """Counted where CUDA itself tells of it: a deeper model waits no more often, forward and backward."""
    batch = packed_batch().to(torch.device("cuda"))
    waits = []
    for num_layers in (1, 4):
        with torch.device("cuda"):
            model = llama(attention, num_layers, torch.bfloat16)
        model(**batch.forward_keywords()).logits.sum().backward()  # what is set up once
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                model(**batch.forward_keywords()).logits.sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchronizing" in str(warning.message) for warning in told))
    assert waits[0] == waits[1]


@pytest.mark.gpu
@needs_varlen
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_attention_itself_never_waits_for_the_device():
    parts = [part.cuda() for part in tensors(2, 64, 64)]
    borders = np.concatenate([[0], np.cumsum(LENGTHS)])
    keywords = {
        "cu_seq_lens_q": torch.tensor(borders, dtype=torch.int32, device="cuda"),
        "max_length_q": max(LENGTHS),
        "conversations": Conversations(tuple(borders.tolist())),
    }
    segment_attention.segment_attention(torch.nn.Identity(), *parts, None, **keywords)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        segment_attention.segment_attention(torch.nn.Identity(), *parts, None, **keywords)
        segment_attention.segment_attention(torch.nn.Identity(), *parts, None, **keywords, softcap=2.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.usefixtures("other_precision")
def test_a_run_in_bfloat16_on_a_gpu_has_about_the_losses_of_float32(
    make_model, tiny_dataset, tmp_path, attention, method
):
    """From its start-up checks, under the run's own autocast, to its end."""
    from accelerate.state import AcceleratorState

    pytest.importorskip("bitsandbytes") if method == "qlora" else None
    model = make_model(tmp_path / "model", **SHAPE)
    curves = []
    for name, dtype in ((attention, "bfloat16"), ("eager", "float32")):
        output = tmp_path / dtype
        values = {"model": str(model), "dataset": str(tiny_dataset), "output": str(output), "method": method}
        values |= {"max_steps": 4, "global_batch_size": 4, "learning_rate": 0.003, "trackers": []}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values | {"attention": name, "dtype": dtype}))
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one type of numbers otherwise
        result = CliRunner().invoke(main, ["launch", str(path)])
        assert result.exit_code == 0, result.stderr
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        curves.append([line["loss"] for line in lines if line["event"] in ("train", "validation")])
    assert curves[0] == pytest.approx(curves[1], rel=3e-2)
    assert curves[0] != curves[1]
