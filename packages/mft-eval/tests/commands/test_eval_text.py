"""chrF, BLEU and exact match: sacrebleu's figures, and the command over files."""

import json
import math

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mft_eval.cli import main
from mft_eval.scoring.text_similarity import MEASURES

# Texts, references, and what sacrebleu 2.6.0 gives as chrF and BLEU with its default settings.
SACREBLEU = [
    (
        ["Returns the sum of a list.", "def add(a, b): return a+b", "It's x=3.14, not 1,000."],
        ["Return the sum of the list.", "def add(x, y):\n    return x + y", "It is x = 3.14, not 1,000!"],
        63.440221815463474,
        36.031874252514825,
    ),
    (["the cat sat on the mat today"], ["the cat sat on the mat"], 93.48516357545938, 80.91067115702207),
    (["a"], ["b"], 0.0, 0.0),
    (["", "x y z w"], ["empty", "x y z w"], 45.61846375766317, 77.88007830714052),
    (
        ["public int f(int x) { return x + 1; }"],
        ["public int f(int y) { return y + 1; }"],
        72.24544189036943,
        53.33505353503043,
    ),
    (['日本 é &amp; "q"'], ['日本 é & "q" r'], 35.097350371859385, 84.64817248906144),
    (
        ["one two three four five six", "one"],
        ["one two three four six five", "one"],
        76.76873698882044,
        56.234132519034915,
    ),
]


@pytest.mark.parametrize(("texts", "references", "chrf", "bleu"), SACREBLEU)
def test_scores_are_sacrebleus(texts, references, chrf, bleu):
    pairs = list(zip(texts, references, strict=True))
    assert math.isclose(MEASURES["chrf"].of(pairs), chrf, abs_tol=1e-9)
    assert math.isclose(MEASURES["bleu"].of(pairs), bleu, abs_tol=1e-9)


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=4))
def test_scores_lie_between_0_and_100(pairs):
    for measure in MEASURES.values():
        assert -1e-9 <= measure.of(pairs) <= 100 + 1e-9


@given(st.lists(st.text("abc def", min_size=30, max_size=40).filter(lambda text: len(text.split()) > 4), min_size=1))
def test_a_text_that_is_its_reference_scores_100(texts):
    pairs = [(text, text) for text in texts]
    for measure in MEASURES.values():
        assert math.isclose(measure.of(pairs), 100)


def test_exact_match_by_hand():
    assert MEASURES["exact"].of([("a ", "a"), ("a", "b"), ("", ""), ("A", "a")]) == 50


def run(*arguments):
    return CliRunner().invoke(main, ["text", *map(str, arguments)])


@pytest.fixture
def files(tmp_path):
    """A file of references, and a way to write generations."""
    references = {f"p{n}": f"Returns the number {n} plus the sum of its list of {n} digits." for n in range(20)}
    path = tmp_path / "references.jsonl"
    path.write_text("".join(json.dumps({"problem_id": k, "reference": v}) + "\n" for k, v in references.items()))

    def write(name, change):
        lines = [{"problem_id": k, "sample_index": 0, "completion": change(v)} for k, v in references.items()]
        out = tmp_path / name
        out.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return out

    return path, write


def test_models_are_compared_with_the_first(files):
    references, write = files
    weak = write("weak.jsonl", lambda text: text.replace("sum", "count").replace("list", "row"))
    strong = write("strong.jsonl", lambda text: f"<think>hm</think>{text}")
    scored = json.loads(run(references, weak, strong, "--format", "json").stdout)
    assert scored["models"][str(strong)] == {"chrf": 100.0, "bleu": 100.0, "exact": 100.0}
    assert scored["models"][str(weak)]["exact"] == 0.0
    found = scored["comparisons"][str(strong)]
    assert {name: comparison["is_decided"] for name, comparison in found.items()} == dict.fromkeys(MEASURES, True)
    assert all(comparison["p_value"] < 0.01 for comparison in found.values())
    shown = run(references, weak, strong).stdout
    assert shown.count("decided") == 3
    assert run(references, weak, strong, "--format", "markdown").stdout.startswith(
        "| generations | chrf | bleu | exact |"
    )


def test_a_difference_under_two_points_is_undecided(files):
    references, write = files
    first = write("first.jsonl", lambda text: text)
    other = write("other.jsonl", lambda text: text.replace("digits.", "digits"))
    found = json.loads(run(references, first, other, "--format", "json").stdout)["comparisons"][str(other)]["chrf"]
    assert -2 < found["difference"] < 0
    assert found["is_decided"] is False


def test_bad_files_are_one_clear_error(files, tmp_path):
    references, write = files
    good = write("good.jsonl", str)
    bad = tmp_path / "bad.jsonl"
    for content, message in (
        ("{", "not a JSON object"),
        ('{"problem_id": "p"}', 'text under "problem_id" and "reference"'),
        ('{"problem_id": "p", "reference": "a"}\n' * 2, 'problem "p" is there twice'),
        ('{"problem_id": "q", "reference": "a"}', 'unknown problem "p0"'),
    ):
        bad.write_text(content)
        result = run(bad, good)
        assert (result.exit_code, result.stderr.count("\n"), message in result.stderr) == (1, 1, True), result.stderr
    bad.write_text(good.read_text().split("\n")[0] + "\n")
    assert '19 references have no text, the first is "p1"' in run(references, bad).stderr
    bad.write_text(good.read_text() + good.read_text().split("\n")[0].replace('"sample_index": 0', '"sample_index": 1'))
    assert "several samples" in run(references, bad).stderr
    assert run(references, good, good).exit_code == 2
