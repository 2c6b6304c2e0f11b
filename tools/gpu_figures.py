"""Speed of training on one device, for tools/gpu_check: the trainer's own parts beside a bare hand loop.

    python gpu_figures.py DEVICE FOLDER SECONDS SIZE:METHOD...

Prints a JSON line for each loop that was measured, and for each that was skipped. Models are random, rows are packed
and half supervised. The trainer's loop is that of a run, from loading and start-up checks to the optimizer's step,
without rows from disk, validation and checkpoints. The hand loop is what a careful person writes: transformers, peft,
sdpa, each row alone with positions that restart, logits at supervised positions only, fused AdamW. Both have the same
weights and rows, so their first losses must agree. FOLDER keeps the weights, one model for each size.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

METHODS = ("lora", "qlora", "full")
LLAMA = {"vocab_size": 32_000, "max_position_embeddings": 4096, "tie_word_embeddings": False}
SIZES = {
    "1B": LLAMA
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
    "7B": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 32},
}
TINY = LLAMA | {"vocab_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY_SIZES = {
    "tiny-1B": TINY | {"hidden_size": 64, "intermediate_size": 128},
    "tiny-7B": TINY | {"hidden_size": 128, "intermediate_size": 256},
}
SEQ_LENGTH = {False: 4096, True: 128}  # tokens of a row; of the tiny models
NUM_ROWS = 4  # of an optimizer step
TIMED_SECONDS = 5.0
LEARNING_RATE = 1e-4
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
AGREEMENT = 0.02  # of the first losses, relative: other kernels round otherwise
# Dense bfloat16 operations per second that the maker states, by words in the device's name.
STATED_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


def main() -> None:
    """Measures every pair, until the seconds are over."""
    import torch

    kind, folder, seconds, *pairs = sys.argv[1:]
    device = torch.device("cuda:0" if kind == "cuda" else "cpu")
    deadline = time.monotonic() + float(seconds)
    gemm = gemm_flops(device)
    for pair in pairs:
        size, method = pair.split(":")
        Bench(size, method, device, Path(folder), gemm, deadline).run()


def tell(**answer: object) -> None:
    """A line of the answer."""
    print(json.dumps(answer), flush=True)


class Bench:
    """One size and method: its loops in turn, each in memory that the one before has given back."""

    def __init__(self, size: str, method: str, device, folder: Path, gemm: float, deadline: float) -> None:
        self.size, self.method, self.device, self.gemm, self.deadline = size, method, device, gemm, deadline
        self.is_tiny = size in TINY_SIZES
        self.shape = (SIZES | TINY_SIZES)[size]
        self.model_dir = folder / size
        self.rows = random_rows(SEQ_LENGTH[self.is_tiny], self.shape["vocab_size"])
        self.checkpointing = False
        self.first_loss: float | None = None
        self.too_large: str | None = None

    def run(self) -> None:
        """Prints what each loop did."""
        for loop in (self.ours, self.hand):
            try:
                loop()
            except Exception as error:
                self.fail(loop.__name__, error)
            self.give_back()

    def fail(self, loop: str, error: Exception) -> None:
        """Says why a loop has no figure: too little memory and missing parts are skips, anything else is an error."""
        import torch

        name = f"{self.size} {self.method} {loop}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, torch.OutOfMemoryError):
            tell(skipped=f"{name}: out of memory")
        elif isinstance(error, SkippedError):
            tell(skipped=f"{name}: {reason}")
        else:
            where = f"{type(error).__name__}: {reason}"
            tell(model=self.size, method=self.method, loop=loop, error=f"{name}: {where}")

    def ours(self) -> None:
        """The trainer's loop, then with compiled layers."""
        import torch

        from mft_train.engine.start import start_engine
        from mft_train.engine.world import World
        from mft_train.errors import TrainError
        from mft_train.model.compiled_layers import check_compile, compile_layers
        from mft_train.model.load import load_model
        from mft_train.optimization.optimizer import build_optimizer
        from mft_train.running.train import checked_loss
        from mft_train.running.train_step import accumulate_gradients

        self.need_parts()
        self.make_model()
        config, dataset = self.config(), self.dataset()
        compute = self.settled(config, dataset)
        engine = start_engine(config, World(), compute)
        compute = replace(compute, device=engine.accelerator.device)
        self.reset_peak()
        model = load_model(config, compute, dataset)
        model, optimizer = engine.prepare(model, lambda model: build_optimizer(model, config))
        bare = engine.accelerator.unwrap_model(model)
        loss_head = checked_loss(config, compute, dataset, engine.accelerator, bare)
        weights = torch.ones(1, dtype=torch.float64, device=self.device)

        def step() -> float:
            result = accumulate_gradients(
                engine,
                model,
                optimizer,
                loss_head,
                self.rows,
                micro_batch_size=1,
                reduction="token_mean",
                task_weights=weights,
                max_grad_norm=1.0,
            )
            engine.step(model, optimizer, LEARNING_RATE)
            return result.loss

        self.measure("mft-train", step)
        if self.is_tiny:
            raise SkippedError("compiled: not of tiny models, compiling takes longer than all else")
        try:
            check_compile(config.model_copy(update={"compile": True}), compute)
        except TrainError as error:
            raise SkippedError(f"compiled: {error.format_message()}") from error
        compile_layers(bare)
        self.measure("mft-train, compiled", step)

    def hand(self) -> None:
        """The hand loop."""
        import torch
        from torch.nn.functional import cross_entropy

        self.need_parts()
        self.reset_peak()
        model = self.hand_model()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, LEARNING_RATE, fused=True)
        batches = [self.hand_batch(row) for row in self.rows]
        count = sum(len(labels) for _, _, labels in batches)

        def step() -> float:
            total = 0.0
            for ids, positions, labels in batches:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                    keywords = {"position_ids": positions, "use_cache": False, "logits_to_keep": labels - 1}
                    logits = model(input_ids=ids, **keywords).logits[0]
                loss = cross_entropy(logits.float(), ids[0, labels], reduction="sum") / count
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return total

        self.measure("hand loop", step)

    def hand_model(self):
        """The model of the hand loop, on its device."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        compute = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        keywords = {"dtype": torch.float32 if self.method == "full" else compute, "attn_implementation": "sdpa"}
        if self.method == "qlora":
            keywords["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=compute,
            )
            keywords["device_map"] = {"": self.device}
        model = AutoModelForCausalLM.from_pretrained(self.model_dir, trust_remote_code=False, **keywords)
        if self.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.method != "full":
            model = get_peft_model(model, LoraConfig(**LORA))
        return (model if self.method == "qlora" else model.to(self.device)).train()

    def hand_batch(self, row):
        """Ids, positions that restart in each conversation, and the positions of supervised tokens."""
        import numpy as np
        import torch

        ids = torch.from_numpy(row.input_ids).to(self.device)[None]
        positions = torch.cat([torch.arange(int(length)) for length in row.segment_lengths]).to(self.device)[None]
        labels = torch.from_numpy(np.flatnonzero(row.loss_mask)).to(self.device)
        return ids, positions, labels

    def measure(self, loop: str, step: Callable[[], float]) -> None:
        """Prints the rate of a loop, whose first steps warm up; raises SkippedError without time for it."""
        if time.monotonic() > self.deadline - 5:
            raise SkippedError(f"{loop}: no time left")
        losses = [step(), step()]
        if self.first_loss is None:
            self.first_loss = losses[0]
        self.wait()
        started, steps = time.perf_counter(), 0
        while not steps or (not self.is_tiny and time.perf_counter() - started < TIMED_SECONDS):
            step()
            steps += 1
        self.wait()
        seconds = (time.perf_counter() - started) / steps
        flops = step_flops(self.shape, self.method, self.rows) / seconds
        stated = self.stated_flops()
        if loop == "hand loop" and abs(losses[0] - self.first_loss) > AGREEMENT * abs(self.first_loss):
            raise RuntimeError(f"its first loss is {losses[0]:.4f}, mft-train's {self.first_loss:.4f}")
        tell(
            model=self.size,
            method=self.method,
            loop=loop,
            tokens_per_second=round(sum(len(row.input_ids) for row in self.rows) / seconds, 1),
            mfu=round(flops / stated, 4) if stated else None,
            gemm_share=round(flops / self.gemm, 4),
            peak_bytes=self.peak(),
            gradient_checkpointing=self.checkpointing,
            steps=steps,
            loss=round(losses[0], 6),
        )

    def need_parts(self) -> None:
        """Raises SkippedError for a method that lacks a package, or is known not to fit."""
        import importlib.util

        if self.too_large:
            raise SkippedError(self.too_large)
        if self.method == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
            raise SkippedError("bitsandbytes is not installed (`tools/gpu_wheels DIR --with-bitsandbytes`)")

    def make_model(self) -> None:
        """Writes the size's random weights, made on the device, unless they are there."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        if self.model_dir.exists():
            return
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        with torch.device(self.device):
            model = LlamaForCausalLM._from_config(LlamaConfig(**self.shape), dtype=dtype)
        model.save_pretrained(self.model_dir)
        del model
        self.give_back()

    def config(self):
        """A run's config, whose dataset and output are never looked at."""
        from mft_train.config.config import RunConfig

        return RunConfig(
            model=str(self.model_dir),
            dataset="none",
            output="none",
            method=self.method,
            max_steps=1,
            global_batch_size=NUM_ROWS,
            learning_rate=LEARNING_RATE,
            weight_decay=0.01,
            beta2=0.999,
        )

    def dataset(self):
        """What a manifest would say of the rows."""
        from mft_train.rows.dataset_dir import DatasetDir, Task

        tokens = sum(len(row.input_ids) for row in self.rows)
        supervised = int(sum(row.loss_mask.sum() for row in self.rows))
        conversations = sum(len(row.segment_lengths) for row in self.rows)
        task = Task("random", 0, len(self.rows), tokens, supervised, 0, conversations)
        vocabulary, length = self.shape["vocab_size"], SEQ_LENGTH[self.is_tiny]
        return DatasetDir(
            Path("none"), length, (task,), vocabulary - 1, is_packed=True, manifest_sha256="", is_weighted=False
        )

    def settled(self, config, dataset):
        """How it computes, with checkpointing as needed; raises SkippedError for what does not fit even so."""
        from mft_train.model.compute import settle_compute
        from mft_train.model.load import empty_model
        from mft_train.planning.memory import estimate_memory, free_bytes, readable, settle_checkpointing

        compute = replace(settle_compute(config, self.device), device=self.device)
        free = free_bytes(self.device, 1)
        compute = settle_checkpointing(config, compute, dataset, 1, free, is_talking=False)
        needed = estimate_memory(config, compute, dataset, empty_model(config), 1).total
        if needed > free:
            self.too_large = f"needs about {readable(needed)}, {readable(free)} are free"
            raise SkippedError(self.too_large)
        self.checkpointing = compute.gradient_checkpointing
        return compute

    def stated_flops(self) -> float | None:
        """The maker's rate of this device, None if it is not in the table."""
        import torch

        name = torch.cuda.get_device_name() if self.device.type == "cuda" else ""
        return next((rate for words, rate in STATED_FLOPS.items() if words in name), None)

    def give_back(self) -> None:
        """Gives memory that nothing holds any more back to the device."""
        import torch

        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Waits until the device has done what it was given."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        """Lets the peak of memory begin anew."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """The peak of memory, on a CPU that of the process."""
        from mft_train.tracking.peak_memory import peak_memory_bytes

        return peak_memory_bytes()


class SkippedError(Exception):
    """Why a loop is not run."""


def random_rows(length: int, vocabulary: int) -> list:
    """Full rows of conversations of many lengths, the second half of each supervised."""
    import numpy as np

    from mft_train.rows.packed_batch import Row

    generator = np.random.default_rng(0)
    rows = []
    for _ in range(NUM_ROWS):
        lengths: list[int] = []
        while (left := length - sum(lengths)) > 0:
            drawn = int(length * generator.uniform(1 / 32, 3 / 8))
            lengths.append(left if left - drawn < length // 32 else drawn)
        mask = np.concatenate([np.arange(part) >= part // 2 for part in lengths])
        rows.append(Row(generator.integers(0, vocabulary, length), mask.astype(np.uint8), np.array(lengths), 0))
    return rows


def step_flops(shape: dict, method: str, rows: list) -> float:
    """Floating-point operations that a step needs: those of matrix products, recomputation not counted.

    Two for each weight and token forward, as many again for the gradient of each input and, in full training, of each
    weight; the head at supervised positions only; attention within conversations, causal.
    """
    heads, keys, hidden = shape["num_attention_heads"], shape["num_key_value_heads"], shape["hidden_size"]
    attention = 2 * hidden * hidden + 2 * hidden * hidden * keys // heads
    matrices = shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"])
    tokens = sum(len(row.input_ids) for row in rows)
    supervised = int(sum(row.loss_mask.sum() for row in rows))
    squares = float(sum((row.segment_lengths.astype(float) ** 2).sum() for row in rows))
    passes = 3 if method == "full" else 2
    products = 2 * passes * (tokens * matrices + supervised * hidden * shape["vocab_size"])
    return products + 3 * 2 * squares * hidden * shape["num_hidden_layers"]


def gemm_flops(device) -> float:
    """Operations per second of a large product in the type that is computed in."""
    import torch

    is_cuda = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if is_cuda else (512, torch.float32)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):
        if is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        left @ right
        if is_cuda:
            torch.cuda.synchronize()
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
