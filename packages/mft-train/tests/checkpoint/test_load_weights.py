import pytest
import torch

from mft_train.config.config import RunConfig
from mft_train.errors import TrainError
from mft_train.model.compute import settle_compute
from mft_train.model.load import load_model
from mft_train.rows.dataset_dir import open_dataset


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_full_model_takes_saved_weights_and_misses_none(make_model, tiny_dataset, tmp_path, is_tied):
    from safetensors.torch import load_file, save_file

    base = make_model(tmp_path / "base", tie_word_embeddings=is_tied)
    values = {"model": str(base), "dataset": str(tiny_dataset), "output": "o", "max_steps": 1, "method": "full"}
    config, dataset = RunConfig(**values), open_dataset(str(tiny_dataset))
    compute = settle_compute(config, torch.device("cpu"))
    model = load_model(config, compute, dataset)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved")
    model = load_model(config, compute, dataset, tmp_path / "saved")
    assert all(torch.equal(tensor, changed[name]) for name, tensor in model.state_dict().items())
    (shard,) = (tmp_path / "saved").glob("*.safetensors")
    weights = load_file(shard)
    del weights["model.norm.weight"]
    save_file(weights, shard, metadata={"format": "pt"})
    with pytest.raises(TrainError, match=r'weight "model\.norm\.weight" is missing'):
        load_model(config, compute, dataset, tmp_path / "saved")
