"""How far each task's training gradient points where the validation gradients of all tasks do, as JSON: DATASET MODEL.

The number of a task is the cosine of the angle between its gradient and the sum of the validation gradients, each the
gradient of a task's mean token loss over up to ROWS rows, on all parameters.
"""

import json
import sys

import torch
from loading import load_model, read_rows
from torch.nn import functional as F

from mft_train.loss.loss_head import LossHead
from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.packed_batch import pack_rows

ROWS, MICRO_BATCH = 16, 4


def gradient(model, rows):
    """Of the mean token loss over rows, as one vector."""
    model.zero_grad()
    loss_head = LossHead(model)
    batches = [pack_rows(rows[start : start + MICRO_BATCH]) for start in range(0, len(rows), MICRO_BATCH)]
    num_tokens = sum(len(batch.labels) for batch in batches)
    for batch in batches:
        objective, _, _ = loss_head(model, batch, torch.full((len(batch.labels),), 1 / num_tokens))
        objective.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def main():
    location, model_dir = sys.argv[1:]
    dataset, model = open_dataset(location), load_model(model_dir)

    def split_gradients(split):
        for task in dataset.trained_tasks:
            yield gradient(model, read_rows(dataset, split, task, ROWS))

    wanted = sum(split_gradients("validation"))
    names = [task.name for task in dataset.trained_tasks]
    cosines = [F.cosine_similarity(found, wanted, dim=0).item() for found in split_gradients("train")]
    print(json.dumps(dict(zip(names, cosines, strict=True))))


if __name__ == "__main__":
    main()
