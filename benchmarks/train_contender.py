"""One contender of the training benchmark, alone in its process: prints its rate and peak memory as JSON.

    python train_contender.py hand|kernels|ours|trl METHOD MODEL DATASET OUT ROWS_PER_STEP EPOCHS [KEY=VALUE]...

Every contender trains on the conversations of the same rows, all of them in each epoch, with the same learning rate,
AdamW and LoRA shape; the first epoch is not timed, rates are those of the fastest other one. The hand loop is what a
careful person writes: each row alone with restarting positions and no mask, logits at supervised positions only, fused
AdamW, nothing else. `kernels` is that loop with mft-train's attention, loss and LoRA in it: what is left between it and
`ours` is the trainer's overhead.
"""

import itertools
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

LEARNING_RATE = 1e-4
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
IGNORED = -100


def read_rows(dataset):
    """Every training row: token ids, loss mask, segment lengths."""
    from streaming import LocalDataset

    folders = sorted((Path(dataset) / "train").iterdir())
    return [row for folder in folders for row in LocalDataset(local=str(folder))]


def supervised(row):
    """The positions of a row's supervised tokens that have a token of their conversation before them."""
    starts = np.concatenate([[0], np.cumsum(row["segment_lengths"])[:-1]]).astype(int)
    mask = row["loss_mask"].astype(bool)
    mask[starts] = False
    return np.flatnonzero(mask)


def load(method, model_dir):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    )
    return get_peft_model(model, LoraConfig(**LORA)) if method == "lora" else model


def hand(method, model_dir, dataset, _, rows_per_step, epochs):
    import torch
    from torch.nn.functional import cross_entropy

    model = load(method, model_dir).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], LEARNING_RATE, fused=True)
    rows = read_rows(dataset)
    times, losses = [], []
    for _ in range(epochs):
        for first in range(0, len(rows), rows_per_step):
            batch = rows[first : first + rows_per_step]
            count = sum(len(supervised(row)) for row in batch)
            total = 0.0
            for row in batch:
                ids = torch.from_numpy(row["input_ids"].astype(np.int64))
                positions = torch.cat([torch.arange(int(length)) for length in row["segment_lengths"]])
                labels = torch.from_numpy(supervised(row))
                keywords = {"position_ids": positions[None], "use_cache": False, "logits_to_keep": labels - 1}
                logits = model(input_ids=ids[None], **keywords).logits[0]
                loss = cross_entropy(logits, ids[labels], reduction="sum") / count
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
        times.append(time.perf_counter())
    return times, losses


def kernels(method, model_dir, dataset, _, rows_per_step, epochs):
    import torch

    from mft_train.loss.loss_head import LossHead
    from mft_train.model import segment_attention
    from mft_train.model.lora_linear import fuse_adapters
    from mft_train.rows.packed_batch import Row, pack_rows

    segment_attention.register()
    model = load(method, model_dir).train()
    model.set_attn_implementation(segment_attention.NAME)
    if method == "lora":
        fuse_adapters(model)
    head = LossHead(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], LEARNING_RATE, fused=True)
    rows = read_rows(dataset)
    batches = [pack_rows([Row(r["input_ids"], r["loss_mask"], r["segment_lengths"].astype(int), 0)]) for r in rows]
    times, losses = [], []
    for _ in range(epochs):
        for first in range(0, len(batches), rows_per_step):
            batch = batches[first : first + rows_per_step]
            count = sum(len(row.labels) for row in batch)
            total = 0.0
            for row in batch:
                loss, _, _ = head(model, row, torch.full((len(row.labels),), 1 / count))
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
        times.append(time.perf_counter())
    return times, losses


def ours(method, model_dir, dataset, out, rows_per_step, epochs, *overrides):
    from mft_train.cli import main as mft_train
    from mft_train.config.config import RunConfig
    from mft_train.config.loss_config import LossConfig
    from mft_train.tracking.metrics import MetricsWriter

    times, losses = [], []
    write = MetricsWriter.write

    def timed_write(writer, event, **values):
        write(writer, event, **values)
        if event == "train":
            times.append(time.perf_counter())
            losses.append(values["loss"])

    MetricsWriter.write = timed_write
    defaults = RunConfig(
        model=model_dir,
        dataset=dataset,
        output=out,
        method=method,
        epochs=epochs,
        global_batch_size=rows_per_step,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        beta2=0.999,
        weight_decay=0.01,
        validation_interval=0,
        loss=LossConfig(reduction="token_mean"),
    )
    config = Path(f"{out}.yaml")
    config.write_text(defaults.model_dump_json(exclude_none=True))
    mft_train(["launch", str(config), *overrides], standalone_mode=False)
    steps_per_epoch = len(times) // epochs
    return times[steps_per_epoch - 1 :: steps_per_epoch], losses


def trl(method, model_dir, dataset, out, rows_per_step, epochs):
    import datasets
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    conversations = []
    for row in read_rows(dataset):
        borders = np.cumsum(row["segment_lengths"])[:-1].astype(int)
        labels = np.full(len(row["input_ids"]), IGNORED)
        labels[supervised(row)] = row["input_ids"][supervised(row)]
        for ids, targets in zip(np.split(row["input_ids"], borders), np.split(labels, borders), strict=True):
            conversations.append({"input_ids": ids.tolist(), "labels": targets.tolist()})

    times, losses = [], []

    class Clock(TrainerCallback):
        def on_epoch_end(self, *_, **__):
            times.append(time.perf_counter())

        def on_log(self, *_, logs, **__):
            if "loss" in logs:
                losses.append(logs["loss"])

    settings = SFTConfig(
        output_dir=out,
        max_length=max(len(row["input_ids"]) for row in read_rows(dataset)),
        packing=True,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=rows_per_step,
        num_train_epochs=epochs,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        logging_steps=1,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        load("full", model_dir),
        settings,
        train_dataset=datasets.Dataset.from_list(conversations),
        processing_class=AutoTokenizer.from_pretrained(Path(dataset) / "tokenizer", trust_remote_code=False),
        peft_config=LoraConfig(**LORA) if method == "lora" else None,
        callbacks=[Clock()],
    )
    trainer.train()
    print(f"TRL packed {len(conversations)} conversations into {len(trainer.train_dataset)} rows", file=sys.stderr)
    return times, losses


def main():
    contender, method, model_dir, dataset, out, rows_per_step, epochs, *overrides = sys.argv[1:]
    os.environ["HF_HUB_OFFLINE"] = "1"
    arguments = (method, model_dir, dataset, out, int(rows_per_step), int(epochs), *overrides)
    run = {"hand": hand, "kernels": kernels, "ours": ours, "trl": trl}[contender]
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not the answer
    times, losses = run(*arguments)
    rows = read_rows(dataset)
    seconds_per_epoch = [later - earlier for earlier, later in itertools.pairwise(times)]
    seconds = min(seconds_per_epoch)
    figures = {
        "contender": contender,
        "method": method,
        "supervised_tokens_per_second": sum(len(supervised(row)) for row in rows) / seconds,
        "tokens_per_second": sum(len(row["input_ids"]) for row in rows) / seconds,
        "seconds_per_epoch": seconds_per_epoch,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "losses": losses,
    }
    os.write(answer, json.dumps(figures).encode() + b"\n")


if __name__ == "__main__":
    main()
