"""Mean token loss of every task of a dataset's training rows under each of some models, as JSON: DATASET MODEL..."""

import json
import sys

from accelerate import Accelerator
from loading import load_model, read_rows

from mft_train.loss.loss_head import LossHead
from mft_train.loss.task_losses import task_losses
from mft_train.rows.dataset_dir import open_dataset


def main():
    location, *models = sys.argv[1:]
    dataset = open_dataset(location)
    rows = [row for task in dataset.trained_tasks for row in read_rows(dataset, "train", task)]
    accelerator = Accelerator(cpu=True)
    found = []
    for path in models:
        model = load_model(path)
        losses = task_losses(accelerator, model, LossHead(model), rows, len(dataset.tasks), 4)
        found.append({task.name: loss for task, loss in zip(dataset.tasks, losses, strict=True)})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
