"""What batches do to tasks' shares of the gradient, and at what noise: a table for `task_counts: batch` and `expected`.

    python benchmarks/run_shares.py MODEL DATASET [--rows 200] [--batches 4000]

Takes the gradient of every row by itself once, of the matrices of a small random LoRA adapter on queries and values,
and puts batches of them together by the coefficients. `bias` is the distance of the mean gradient from that of equal
shares over all rows, `noise` the root of the mean squared distance of a batch's gradient from its mean, both over the
length of the gradient of equal shares. Rows are drawn without replacement.
"""

import argparse

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mft_train.loss.coefficients import count_batch
from mft_train.loss.loss_head import LossHead
from mft_train.model import segment_attention
from mft_train.rows.dataset_dir import open_dataset, to_row
from mft_train.rows.packed_batch import pack_rows

SIZES = (6, 16, 64)


def row_gradients(model_dir, dataset_dir, num_rows):
    """Of rows drawn in proportion to the tasks' sizes: task, supervised tokens, and gradient of the sum of losses."""
    from streaming import LocalDataset

    segment_attention.register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, attn_implementation=segment_attention.NAME, dtype=torch.float32, trust_remote_code=False
    )
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights="gaussian")
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros give the other matrix no gradient
            torch.nn.init.normal_(parameter, std=0.01)
    head = LossHead(model)
    dataset = open_dataset(dataset_dir)
    streams = {task: LocalDataset(local=str(dataset.split_dir("train", task))) for task in dataset.trained_tasks}
    places = [(task, index) for task, stream in streams.items() for index in range(len(stream))]
    chosen = np.random.default_rng(0).permutation(len(places))[:num_rows]
    tasks, tokens, gradients = [], [], []
    for number in chosen:
        task, index = places[number]
        batch = pack_rows([to_row(streams[task][index])])
        model.zero_grad()
        head(model, batch, torch.ones(len(batch.labels), dtype=torch.float64))[0].backward()
        tasks.append(task.task_id)
        tokens.append(int(count_batch(batch.segment_tasks, batch.segment_tokens, len(dataset.tasks))[0].sum()))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).numpy())
    return [task.name for task in dataset.tasks], np.array(tasks), np.array(tokens), np.stack(gradients)


def batch_coefficients(tasks, tokens, drawn, counts):
    """The coefficient of every row in one batch: by the batch's own counts, or those that are expected."""
    own = np.bincount(tasks[drawn], tokens[drawn], minlength=len(counts))
    if counts.any():
        return (1 / (counts > 0).sum() / counts)[tasks[drawn]]
    return 1 / (own > 0).sum() / own[tasks[drawn]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--batches", type=int, default=4000)
    arguments = parser.parse_args()
    names, tasks, tokens, gradients = row_gradients(arguments.model, arguments.dataset, arguments.rows)
    gram = gradients.astype(np.float64) @ gradients.T.astype(np.float64)
    totals = np.bincount(tasks, tokens, minlength=len(names))
    target = 1 / (totals > 0).sum() / totals[tasks]
    length = target @ gram @ target
    generator = np.random.default_rng(1)
    print(f"rows by task: {dict(zip(names, np.bincount(tasks, minlength=len(names)).tolist(), strict=True))}\n")
    print("| rows a batch | task_counts | " + " | ".join(names) + " | bias | noise |")
    print("|---|---|" + "---:|" * (len(names) + 2))
    for size in SIZES:
        draws = [generator.permutation(len(tasks))[:size] for _ in range(arguments.batches)]
        for name in ("batch", "expected"):
            counts = totals * size / len(tasks) if name == "expected" else np.zeros_like(totals)
            chosen = np.zeros((len(draws), len(tasks)))
            for row, drawn in zip(chosen, draws, strict=True):
                row[drawn] = batch_coefficients(tasks, tokens, drawn, counts)
            shares = np.stack([(chosen * tokens)[:, tasks == task].sum(1).mean() for task in range(len(names))])
            mean = chosen.mean(0)
            apart = chosen - mean
            bias = np.sqrt((mean - target) @ gram @ (mean - target) / length)
            noise = np.sqrt(((apart @ gram) * apart).sum(1).mean() / length)
            figures = [*(f"{share:.3f}" for share in shares), f"{bias:.2f}", f"{noise:.2f}"]
            print(f"| {size} | `{name}` | " + " | ".join(figures) + " |")


if __name__ == "__main__":
    main()
