"""Mean token loss of every task of a dataset's training rows under each of some models, as JSON: DATASET MODEL..."""

import json
import sys

from accelerate import Accelerator
from streaming import LocalDataset
from transformers import AutoModelForCausalLM

from mft_train.loss.loss_head import LossHead
from mft_train.loss.task_losses import task_losses
from mft_train.model import segment_attention
from mft_train.rows.dataset_dir import open_dataset, to_row


def main():
    location, *models = sys.argv[1:]
    segment_attention.register()
    dataset = open_dataset(location)
    streams = [LocalDataset(local=str(dataset.split_dir("train", task))) for task in dataset.trained_tasks]
    rows = [to_row(stream[index]) for stream in streams for index in range(len(stream))]
    accelerator = Accelerator(cpu=True)
    found = []
    for path in models:
        model = AutoModelForCausalLM.from_pretrained(
            path, attn_implementation=segment_attention.NAME, trust_remote_code=False
        )
        losses = task_losses(accelerator, model, LossHead(model), rows, len(dataset.tasks), 4)
        found.append({task.name: loss for task, loss in zip(dataset.tasks, losses, strict=True)})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
