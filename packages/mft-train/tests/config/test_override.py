"""Settings on the command line whose keys are names of tasks."""

import pytest

from mft_train.config.config_file import apply_override, key_path
from mft_train.errors import TrainError


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("max_steps", ("max_steps",)),
        ("loss.coba.tau", ("loss", "coba", "tau")),
        ("mixture.c++.v2", ("mixture", "c++.v2")),
        ("repeats.my.task.1", ("repeats", "my.task.1")),
        ("loss.task_weights.sql-1.5", ("loss", "task_weights", "sql-1.5")),
        ("mixture", ("mixture",)),
        ("no.such.key", ("no", "such", "key")),
    ],
)
def test_what_follows_a_mapping_is_one_name(name, keys):
    assert key_path(name) == keys


def test_a_task_with_dots_in_its_name_is_set(tmp_path):
    settings, places = {"loss": {"task_weights": {"a": 1.0}}}, {}
    apply_override(settings, places, "loss.task_weights.c.v2=3.5")
    assert settings == {"loss": {"task_weights": {"a": 1.0, "c.v2": 3.5}}}
    assert places == {("loss", "task_weights", "c.v2"): 'override "loss.task_weights.c.v2=3.5"'}
    with pytest.raises(TrainError, match=r'"loss" in override .* is not a section'):
        apply_override({"loss": 3}, {}, "loss.coba=1")
