import itertools
import json
import re

from click.testing import CliRunner
from pydantic import BaseModel

from mft_train.cli import main
from mft_train.config.config import RunConfig
from mft_train.config.config_file import read_config

EXAMPLES = {"model": "base/", "dataset": "dataset/", "output": "run/", "max_steps": 200, "mixture_exponent": 0.5}


def keys(model: type[BaseModel]) -> list[str]:
    """Every key of a section and of the sections in it."""
    found = []
    for name, field in model.model_fields.items():
        found.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += keys(field.annotation)
    return found


def test_the_starter_reads_back_as_the_defaults_and_explains_every_key(tmp_path):
    path = tmp_path / "run.yaml"
    result = CliRunner().invoke(main, ["init", str(path)])
    assert (result.exit_code, result.stdout) == (0, f"{path}\n")
    assert read_config(path) == RunConfig(**EXAMPLES)
    lines = path.read_text().splitlines()
    explained = [
        re.match(r" *(\w+):", line)[1]
        for before, line in itertools.pairwise(lines)
        if before.lstrip().startswith("# ") and not line.lstrip().startswith("#")
    ]
    assert explained == keys(RunConfig)
    assert "# decay after warm-up: cosine | linear | constant" in lines


def test_init_does_not_overwrite(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("mine")
    result = CliRunner().invoke(main, ["init", str(path)])
    assert result.exit_code == 1
    assert result.stderr == f'Error: "{path}" exists, it is not overwritten, choose another name\n'
    assert path.read_text() == "mine"
    missing = CliRunner().invoke(main, ["init", str(tmp_path / "none" / "run.yaml")])
    assert missing.exit_code == 1
    assert missing.stderr == f'Error: there is no folder "{tmp_path / "none"}" for "run.yaml", make it first\n'


def test_the_schema_names_every_key():
    result = CliRunner().invoke(main, ["schema"])
    document = json.loads(result.stdout)
    assert set(document["properties"]) == set(RunConfig.model_fields)
    assert document["additionalProperties"] is False
    assert set(document["$defs"]["CobaConfig"]["properties"]) == {"warmup_updates", "history_length", "tau"}
