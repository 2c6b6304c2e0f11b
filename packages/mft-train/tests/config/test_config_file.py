import pytest

from mft_train.config.config_file import read_config, write_config
from mft_train.errors import TrainError

MINIMAL = "model: base/\ndataset: dataset/\noutput: run/\nmax_steps: 10\n"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults_and_plain_scientific_notation(write):
    config = read_config(write(MINIMAL + "learning_rate: 1e-4\n"))
    assert config.learning_rate == 1e-4
    assert config.loss.reduction == "task_mean"
    assert config.lora.rank == 16


def test_overrides_win_and_reach_sections(write):
    config = read_config(write(MINIMAL), ["max_steps=3", "lora.rank=4", "loss.task_weights={a: 2}"])
    assert (config.max_steps, config.lora.rank, config.loss.task_weights) == (3, 4, {"a": 2.0})


def test_the_written_config_reads_back_the_same(write, tmp_path):
    config = read_config(write(MINIMAL), ["lora.target_modules=[q_proj]"])
    write_config(config, tmp_path / "resolved.yaml")
    assert read_config(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (
            MINIMAL + "learning_rat: 1\n",
            [],
            'unknown key "learning_rat", in {file} line 5, did you mean "learning_rate"?',
        ),
        (MINIMAL + "lora:\n  rnk: 1\n", [], 'unknown key "lora.rnk", in {file} line 6, did you mean "rank"?'),
        (
            MINIMAL + "lora:\n  rank: many\n",
            [],
            "\"lora.rank\" is 'many': input should be a valid integer, in {file} line 6",
        ),
        (MINIMAL + "seed: -1\n", [], '"seed" is -1: input should be greater than or equal to 0, in {file} line 5'),
        (MINIMAL + "seed: 1\nseed: 2\n", [], 'key "seed" is given twice, first on line 5, in {file} line 6'),
        (MINIMAL + "epochs: 1\n", [], "give exactly one of max_steps and epochs, in {file}"),
        (
            MINIMAL + "warmup_steps: 1\nwarmup_ratio: 0.1\n",
            [],
            "give warmup_steps or warmup_ratio, not both, in {file}",
        ),
        (MINIMAL, ["warmup_ratio=1"], '"warmup_ratio" is 1: input should be less than 1, in override "warmup_ratio=1"'),
        (
            MINIMAL + "a: [\n",
            [],
            "not valid YAML: expected the node content, but found '<stream end>', in {file} line 6",
        ),
        ("- a\n", [], "the config is not a mapping, in {file}, write one `key: value` per line"),
        ("model: m\noutput: o\nmax_steps: 1\n", [], 'key "dataset" is missing, in {file}, add `dataset: ...`'),
        (MINIMAL, ["seed"], '"seed" is not an override, write key=value or key.sub=value'),
        (MINIMAL, ["sed=1"], 'unknown key "sed", in override "sed=1", did you mean "seed"?'),
        (MINIMAL, ["model.x=1"], '"model" in override "model.x=1" is not a section'),
        (
            MINIMAL,
            ["method=lor"],
            "\"method\" is 'lor': input should be 'lora', 'qlora' or 'full', in override \"method=lor\"",
        ),
        (
            MINIMAL + "loss:\n  coba:\n    taw: 1\n",
            [],
            'unknown key "loss.coba.taw", in {file} line 7, did you mean "tau"?',
        ),
        (
            MINIMAL + "loss: {reduction: token_mean, task_weights: {a: 1}}\n",
            [],
            '"loss": task_weights have no effect with reduction token_mean, in {file} line 5',
        ),
        (
            MINIMAL + "loss: {balancer: coba, task_weights: {a: 1}}\n",
            [],
            '"loss": task_weights have no effect with balancer coba, in {file} line 5',
        ),
        (
            MINIMAL + "loss: {balancer: famo, reduction: sample_mean}\n",
            [],
            '"loss": balancer famo has no effect with reduction sample_mean, in {file} line 5',
        ),
    ],
)
def test_bad_configs_name_the_key_the_line_and_the_fix(write, text, overrides, message):
    path = write(text)
    with pytest.raises(TrainError) as caught:
        read_config(path, overrides)
    assert caught.value.message == message.format(file=path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(TrainError, match="cannot read the config"):
        read_config(tmp_path / "none.yaml")
