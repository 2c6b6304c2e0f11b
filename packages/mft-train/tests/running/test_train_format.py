"""FORMAT.md's examples have the fields that a real run writes."""

import json
from pathlib import Path

import yaml
from click.testing import CliRunner

from mft_train.cli import main
from mft_train.tracking.trackers import read_run_ids

FORMAT = Path(__file__).parents[2] / "FORMAT.md"


def test_the_examples_have_the_fields_of_a_real_run(tiny_model, tiny_dataset, tmp_path):
    settings = {"model": str(tiny_model), "dataset": str(tiny_dataset), "output": str(tmp_path / "run"), "max_steps": 1}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings | {"checkpoint_interval": 1, "global_batch_size": 4}))
    assert CliRunner().invoke(main, ["launch", str(path)]).exit_code == 0
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    fields = {event["event"]: list(event) for event in written}
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000001" / "state" / "run.json").read_text())
    examples = [json.loads(line) for line in FORMAT.read_text().splitlines() if line.startswith("    {")]
    events = [example for example in examples if "event" in example]
    run_state, tracker_runs, best, best_of_task = [example for example in examples if "event" not in example]
    assert {event["event"]: list(event) for event in events} == {name: fields[name] for name in ("train", "validation")}
    assert list(run_state) == list(state)
    for name in ("position", "balance", "validation", "fingerprint"):
        assert list(run_state[name]) == list(state[name])
    assert set(run_state["files"]) < set(state["files"])
    assert list(best) == list(json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text()))
    assert list(best_of_task) == list(json.loads((tmp_path / "run" / "best" / "large" / "best.json").read_text()))
    (tmp_path / "trackers.json").write_text(json.dumps(tracker_runs))
    assert list(read_run_ids(tmp_path / "trackers.json")["mlflow"]) == ["project", "run_id"]
    for kind, names in fields.items():
        assert f"| `{kind}` " in FORMAT.read_text()
        for name in names[2:]:
            assert f"| `{name}` " in FORMAT.read_text()
