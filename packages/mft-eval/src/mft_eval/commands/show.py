"""Results for people and for other programs: tables, Markdown, JUnit XML."""

from typing import Any
from xml.sax.saxutils import escape, quoteattr

from mft_eval.commands.counted import counted, verb
from mft_eval.commands.summary import isolation_notes
from mft_eval.errors import EvalError
from mft_eval.scoring.artifact import encode_json
from mft_eval.scoring.contamination import num_contaminated
from mft_eval.scoring.tables import TABLES

FORMATS = ("table", "markdown", "junit", "json")


def show(results: dict[str, Any], style: str, dataset: str | None = None) -> str:
    """The results in one of `FORMATS`; tables also say what is known of the training data in `dataset`."""
    if style == "json":
        return encode_json(results).decode()
    return _junit(results) if style == "junit" else _tables(results, style, dataset)


def contamination_note(results: dict[str, Any], dataset: str) -> str:
    """Whether the training data had words in common with the problems, as a line to stand beside the scores."""
    found = num_contaminated(results, dataset)
    if found is None:
        return "contamination: not known, build the dataset with mft-data build --decontaminate and this problems file"
    count, answer = found
    shared = f"{counted(count, 'conversation')} that shared ten words in a row with a problem"
    if answer == "drop":
        return f"contamination: {shared} {verb(count, 'was', 'were')} left out of the training data"
    return f"contamination: {shared} {verb(count, 'is', 'are')} in the training data"


def _tables(results: dict[str, Any], style: str, dataset: str | None) -> str:
    names = list(results["pass_at_k"])
    bases = [("base tests alone", results["base"])] if results["base"] else []
    groups = [("all", results), *bases, *results["tags"].items()]
    rows = [[group, str(found["num_problems"]), *(_score(found, name) for name in names)] for group, found in groups]
    told = isolation_notes(results) + ([contamination_note(results, dataset)] if dataset is not None else [])
    notes = "".join(f"{note}\n\n" for note in told)
    text = notes + TABLES[style](["problems", "count", *names], rows)
    measures = [[name, f"{value:.4f}"] for name, value in results["measures"].items()]
    text += "\n" + TABLES[style](["beside", "mean"], measures) if measures else ""
    verdicts = [[verdict, str(count)] for verdict, count in results["verdicts"].items() if count]
    text += "\n" + TABLES[style](["verdict", "samples"], verdicts)
    failed = [
        [problem["problem_id"], f"{problem['num_correct']} of {problem['num_samples']}", _verdicts(problem)]
        for problem in results["problems"]
        if problem["num_correct"] < problem["num_samples"]
    ]
    return text + ("\n" + TABLES[style](["not passed", "correct", "verdicts"], failed) if failed else "")


def _score(found: dict[str, Any], name: str) -> str:
    interval = found["intervals"][name]
    return f"{found['pass_at_k'][name]:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"


def _verdicts(problem: dict[str, Any]) -> str:
    found = [sample["verdict"] for sample in problem["samples"] if sample["verdict"] != "passed"]
    return ", ".join(f"{verdict} {found.count(verdict)}" for verdict in sorted(set(found)))


def _junit(results: dict[str, Any]) -> str:
    """A test case for each sample; a harness-error is an error, any other verdict but passed a failure."""
    verdicts = results["verdicts"]
    num_samples, num_errors = sum(verdicts.values()), verdicts["harness-error"]
    counts = f'tests="{num_samples}" failures="{num_samples - verdicts["passed"] - num_errors}" errors="{num_errors}"'
    suite = quoteattr(results["problems_source"]["name"])
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f"<testsuite name={suite} {counts}>"]
    for problem in results["problems"]:
        for sample in problem["samples"]:
            name = quoteattr(f"{problem['problem_id']}[{sample['sample_index']}]")
            lines.append(f"  <testcase classname={suite} name={name}>{_fault(sample)}</testcase>")
    return "\n".join([*lines, "</testsuite>", ""])


def _fault(sample: dict[str, Any]) -> str:
    if sample["verdict"] == "passed":
        return ""
    kind = "error" if sample["verdict"] == "harness-error" else "failure"
    detail = "".join(character if character.isprintable() else "?" for character in sample["detail"])
    return f"<{kind} message={quoteattr(sample['verdict'])}>{escape(detail)}</{kind}>"


def check_floor(results: dict[str, Any], floors: dict[str, float]) -> list[str]:
    """A sentence for each score that is under its floor; raises for a score that the results do not have."""
    for name in floors:
        if name not in results["pass_at_k"]:
            known = ", ".join(results["pass_at_k"])
            raise EvalError(f"the results have no {name}", fix=f"use one of {known}")
    return [
        f"{name} is {results['pass_at_k'][name]:.4f}, under {floor}"
        for name, floor in floors.items()
        if results["pass_at_k"][name] < floor
    ]
