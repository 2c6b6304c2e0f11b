"""Rulings that are kept between runs."""

import json

import pytest
from click.testing import CliRunner

from mft_eval.cli import main
from mft_eval.judging.judgement import Limits, Ruling
from mft_eval.judging.ruling_cache import cache_path, read_rulings, write_rulings
from mft_eval.problems.problem import ProblemSet


def test_what_comes_back_is_what_no_busy_machine_could_have_brought_about(tmp_path):
    path = tmp_path / "a" / "rulings.json"
    assert read_rulings(path) == {}
    plain, inside = Ruling("outside", may_use_objects=False), Ruling("inside", may_use_objects=True, reason="r")
    slow, broken = Ruling("outside", False, time_factor=6), Ruling("outside", False, fault="timeout")
    write_rulings(path, {"plain": plain, "inside": inside, "slow": slow, "broken": broken})
    assert read_rulings(path) == {"plain": plain, "inside": inside}
    path.write_text('{"plain": {"mo')
    assert read_rulings(path) == {}


def test_other_problems_limits_and_walls_have_other_files():
    paths = {
        cache_path(ProblemSet("p", sha256, ()), limits, kind, walls)
        for sha256 in ("a", "b")
        for kind in ("plain", "tests")
        for walls in ("namespaces", "landlock")
        for limits in (Limits(1, 64), Limits(2, 64), Limits(1, 65))
    }
    assert len(paths) == 24


def test_a_second_run_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    problems = tmp_path / "problems.jsonl"
    program = "class f:\n    def __eq__(self, other): return True"
    fields = {"prompt": "Write f.", "entry_point": "f", "test": "assert f() == f()\n", "reference": program}
    problems.write_text(json.dumps({"problem_id": "p", **fields}) + "\n")
    generations = json.dumps({"problem_id": "p", "sample_index": 0, "completion": program}) + "\n"
    first = CliRunner().invoke(main, ["score", str(problems), "-"], input=generations)
    (kept,) = (tmp_path / "cache" / "mft-eval").iterdir()
    second = CliRunner().invoke(main, ["score", str(problems), "-"], input=generations)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stdout == second.stdout
    assert json.loads(kept.read_text())["p"]["may_use_objects"] is True


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    write_rulings(blocked / "rulings.json", {"p": Ruling("outside", may_use_objects=False)})
    with pytest.raises(NotADirectoryError):
        (blocked / "rulings.json").read_bytes()
