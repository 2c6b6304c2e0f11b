"""A run that goes on with other data, settings or a tokenizer that is not the model's: refused, or forced and told."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.errors import TrainError
from mft_train.rows.dataset_dir import open_dataset
from mft_train.rows.row_stream import RowStream, StreamPosition
from mft_train.rows.tokenizer_match import model_vocabulary

SETTINGS = {"max_steps": 4, "global_batch_size": 4, "validation_interval": 2, "checkpoint_interval": 2, "trackers": []}


@pytest.fixture
def launch(write_run):
    path = write_run(**SETTINGS)
    return lambda *arguments: CliRunner().invoke(main, ["launch", str(path), *map(str, arguments)])


@pytest.fixture
def started(launch):
    """`launch`, with a checkpoint after four steps."""
    result = launch()
    assert result.exit_code == 0, result.stderr
    return launch


def train_events(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "train"]


@pytest.fixture
def other_dataset(make_dataset, tmp_path):
    """Other rows, fewer than the first four steps have consumed, and another number of tasks."""
    return make_dataset(tmp_path / "other", {"large": (6, 2), "small": (3, 2), "third": (2, 1)})


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("global_batch_size=2", "global_batch_size is 2, the checkpoint was made with 4"),
        ("mixture={large: 1, small: 1}", "mixture is {'large': 1.0, 'small': 1.0}, the checkpoint was made with {}"),
        ("seed=1", "seed is 1, the checkpoint was made with 0"),
        ("loss.balancer=coba", "loss.balancer is 'coba', the checkpoint was made with 'static'"),
        ("optimizer=adamw_8bit", "optimizer is 'adamw_8bit', the checkpoint was made with 'adamw'"),
    ],
)
def test_a_resume_with_another_setting_is_refused_and_can_be_forced(started, tmp_path, override, told):
    override = override.replace(": 1", ": 1.0")
    refused = started("--resume", override)
    assert refused.exit_code == 1
    assert told in refused.stderr
    assert "use --force" in refused.stderr
    assert len(train_events(tmp_path / "run")) == 4
    forced = started("--resume", "--force", override, "max_steps=6")
    assert forced.exit_code == 0, forced.stderr
    assert f"--force: {told}" in forced.stderr
    assert [line["global_step"] for line in train_events(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    # The new checkpoint is of the new settings: no force is needed any more.
    assert started("--resume", override, "max_steps=6").exit_code == 0


def test_a_resume_with_other_data_is_refused_and_can_be_forced(started, tmp_path, other_dataset):
    assert "dataset is" in started("--resume", f"dataset={other_dataset}").stderr
    result = started("--resume", "--force", f"dataset={other_dataset}", "max_steps=8")
    assert result.exit_code == 0, result.stderr
    (*_, last) = train_events(tmp_path / "run")
    assert last["global_step"] == 8
    assert list(last["task_weights"]) == ["large", "small", "third"]
    # Sixteen rows had been consumed, the new epoch has eleven: a new one began.
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000006" / "state" / "run.json").read_text())
    assert state["position"] == {"epoch": 1, "rows": 8}
    assert state["validation"]["seen"]["mean"]["step"] == 6


def test_another_method_cannot_be_forced(started):
    result = started("--resume", "--force", "method=full")
    assert result.exit_code == 1
    assert "method is 'full', the checkpoint was made with 'lora'" in result.stderr
    assert "--force" not in result.stderr


def test_a_position_beyond_the_epoch_is_its_end(tiny_dataset, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")

    def rows_from(position):
        stream = RowStream(open_dataset(str(tiny_dataset)), {}, 4, 0, 0, 1)
        return [row.input_ids.tobytes() for row in next(stream.steps(position)).rows]

    assert rows_from(StreamPosition(0, 1000)) == rows_from(StreamPosition(1)) != rows_from(StreamPosition(0, 0))


@pytest.fixture
def model_with_tokenizer(tiny_model, tiny_dataset, tmp_path):
    """The model with the dataset's own tokenizer, whose tokens `change` may rename."""

    def model_with_tokenizer(change=lambda token: token, **config):
        path = Path(shutil.copytree(tiny_model, tmp_path / "model"))
        shutil.copytree(tiny_dataset / "tokenizer", path, dirs_exist_ok=True)
        document = json.loads((path / "tokenizer.json").read_text())
        vocabulary = document["model"]["vocab"]
        document["model"]["vocab"] = {change(token): token_id for token, token_id in vocabulary.items()}
        (path / "tokenizer.json").write_text(json.dumps(document))
        settings = json.loads((path / "tokenizer_config.json").read_text())
        (path / "tokenizer_config.json").write_text(json.dumps(settings | config))
        (path / "chat_template.jinja").write_text("another template")
        return path

    return model_with_tokenizer


def swapped(token):
    return {"w20": "w30", "w30": "w20"}.get(token, token)


def test_a_vocabulary_of_the_same_size_with_other_ids_is_refused_and_can_be_forced(launch, model_with_tokenizer):
    model = model_with_tokenizer(swapped)
    refused = launch(f"model={model}", "max_steps=1")
    assert refused.exit_code == 1
    assert "id 20 is 'w20' in the dataset and 'w30' in the model, 2 of 97 tokens differ" in refused.stderr
    assert f"--tokenizer {model}" in refused.stderr
    forced = launch(f"model={model}", "max_steps=1", "--force")
    assert forced.exit_code == 0, forced.stderr
    assert "--force: the dataset's tokenizer is not the model's" in forced.stderr


def test_the_same_ids_pass_with_another_template_and_another_end_is_told(launch, model_with_tokenizer):
    result = launch(f"model={model_with_tokenizer(eos_token='w2')}", "max_steps=1")
    assert result.exit_code == 0, result.stderr
    assert 'answers in the dataset end with "w1", the model\'s own tokenizer with "w2"' in result.stderr


def test_every_kind_of_tokenizer_file_is_read(tmp_path, tiny_model, tiny_dataset):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -2.0)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=0)))
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(tmp_path / "unigram")
    vocabulary = model_vocabulary(str(tmp_path / "unigram"), trust_remote_code=False)
    assert (vocabulary.ids, vocabulary.eos_token) == (tokenizer.get_vocab(), "<end>")

    assert model_vocabulary(str(tiny_model), trust_remote_code=False) is None
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]))
    (slow / "config.json").write_text('{"model_type": "bert"}')
    assert model_vocabulary(str(slow), trust_remote_code=False).ids["word"] == 5
    (tmp_path / "unigram" / "tokenizer.json").write_text("{}")
    with pytest.raises(TrainError, match="the tokenizer cannot be read"):
        model_vocabulary(str(tmp_path / "unigram"), trust_remote_code=False)
