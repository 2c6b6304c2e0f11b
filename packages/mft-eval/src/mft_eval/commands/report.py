"""Writing the page that shows results: scores side by side, and every problem with what models made of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from mft_eval.commands.compare import SIGNIFICANT, compare, shown_chance
from mft_eval.commands.counted import counted
from mft_eval.commands.kinds import problems_of_kind, read_kind
from mft_eval.commands.reproduce import tell
from mft_eval.commands.summary import isolation_notes
from mft_eval.errors import EvalError
from mft_eval.generations.reading import Generations, read_generations
from mft_eval.judging.gate import rule
from mft_eval.judging.isolation import Isolation, open_pool, settle
from mft_eval.judging.judgement import Limits
from mft_eval.judging.requests import make_request, read_outcome
from mft_eval.judging.ruling_cache import cache_path, read_rulings
from mft_eval.problems.problem import Problem, ProblemSet
from mft_eval.problems.program import make_program
from mft_eval.problems.reading import read_problems
from mft_eval.problems.task_kind import TaskKind
from mft_eval.report.highlighting import tokens_of
from mft_eval.report.page import make_page
from mft_eval.scoring.reading import read_results

# There is nothing to tell of the first, and nothing new of the others.
_NOT_RUN_AGAIN = ("passed", "timeout", "harness-error")
Place = tuple[int, str, int]


def report(
    paths: Sequence[str],
    problems: str | None,
    generations: Sequence[str],
    explanations: str | None,
    num_workers: int,
    isolation: str,
) -> str:
    """The page. With `problems` it has the prompts; with the `generations` files of the results, in any order, the
    programs too, and those that did not pass are run again for their errors and output.
    """
    settled = settle(isolation)
    every = [read_results(path) for path in paths]
    for path, results in zip(paths, every, strict=True):
        if results["problems_source"] != every[0]["problems_source"]:
            raise EvalError(f"{path} is of other problems than {paths[0]}", fix="score both on the same file")
    if generations and problems is None:
        raise EvalError("the programs of generations need their problems", fix="give --problems too")
    problem_set = _problem_set(problems, every[0], paths[0]) if problems is not None else None
    programs: dict[Place, str] = {}
    told: dict[Place, dict[str, str]] = {}
    by_id: dict[str, Problem] = {}
    if problem_set is not None:
        needed = {problem["problem_id"] for results in every for problem in results["problems"]}
        kind = _kind(every[0], explanations)
        chosen = [problem for problem in problem_set.problems if problem.problem_id in needed]
        by_id = {problem.problem_id: problem for problem in problems_of_kind(chosen, kind, num_workers, settled)}
        programs = _programs(every, [read_generations(path, by_id) for path in generations], by_id)
        told = _told(every, programs, by_id, problem_set, num_workers, settled)
    entries = _entries(every, by_id, programs, told)
    source = every[0]["problems_source"]
    lead = f"{len(entries)} of {counted(source['num_problems'], 'problem')}. In brackets: 95 % intervals."
    return make_page(source["name"], lead, _models(paths, every), entries)


def _kind(results: Mapping[str, Any], explanations: str | None) -> TaskKind:
    settings = results["settings"]
    kind = read_kind(settings["kind"], explanations)
    if kind.explanations_sha256 != settings["explanations_sha256"]:
        raise EvalError("the results are of other explanations", fix="give those that they were scored with")
    return kind


def _problem_set(problems: str, results: Mapping[str, Any], path: str) -> ProblemSet:
    problem_set = read_problems(problems)
    if problem_set.sha256 != results["problems_source"]["sha256"]:
        raise EvalError(f"{problems} is not the problems file that {path} was scored on", fix="give the same file")
    return problem_set


def _programs(
    every: Sequence[dict[str, Any]], given: Sequence[Generations], by_id: Mapping[str, Problem]
) -> dict[Place, str]:
    """The program of each sample by the results' number, problem and index."""
    by_sha256 = {generations.sha256: generations for generations in given}
    known = {results["generations_source"]["sha256"] for results in every}
    if by_sha256.keys() - known:
        raise EvalError("a generations file is of none of the results", fix="give those that were scored")
    found = {}
    for number, results in enumerate(every):
        generations = by_sha256.get(results["generations_source"]["sha256"])
        if generations is None:
            continue
        for problem in results["problems"]:
            name = problem["problem_id"]
            for sample in problem["samples"]:
                completion = generations.completions[name][sample["sample_index"]]
                found[number, name, sample["sample_index"]] = make_program(completion, by_id[name])
    return found


def _told(
    every: Sequence[dict[str, Any]],
    programs: Mapping[Place, str],
    by_id: Mapping[str, Problem],
    problem_set: ProblemSet,
    num_workers: int,
    isolation: Isolation,
) -> dict[Place, dict[str, str]]:
    """What a second run of each program that did not pass shows, as `reproduce` tells it."""
    verdicts = {
        (number, problem["problem_id"], sample["sample_index"]): sample["verdict"]
        for number, results in enumerate(every)
        for problem in results["problems"]
        for sample in problem["samples"]
    }
    failed = [place for place in programs if verdicts[place] not in _NOT_RUN_AGAIN]
    if not failed:
        return {}
    settings = every[0]["settings"]
    limits = Limits(settings["timeout_seconds"], settings["memory_mb"])
    with open_pool(isolation, num_workers) as pool:
        rulings = read_rulings(cache_path(problem_set, limits, settings["kind"], isolation.walls))
        unruled = {name: by_id[name] for _, name, _ in failed if name not in rulings}
        rulings |= rule(list(unruled.values()), pool, limits, lambda _: None)
        requests = [
            (place, make_request(by_id[place[1]], programs[place], rulings[place[1]], limits, is_captured=True))
            for place in failed
        ]
        told = {}
        for place, outcome in pool.judge_all(requests):
            problem = by_id[place[1]]
            judgement = read_outcome(outcome, problem, rulings[place[1]])
            again = "" if judgement.verdict == verdicts[place] else f"{judgement.verdict} {judgement.detail}"
            told[place] = {"run again": again, **tell(problem, outcome)}
    return told


def _entries(
    every: Sequence[dict[str, Any]],
    by_id: Mapping[str, Problem],
    programs: Mapping[Place, str],
    told: Mapping[Place, dict[str, str]],
) -> list[dict[str, Any]]:
    """The problems of all results in the order of their source, each with its results by model."""
    scored = [{problem["problem_id"]: problem for problem in results["problems"]} for results in every]
    order = sorted({(problem["index"], name) for found in scored for name, problem in found.items()})
    entries = []
    for _, name in order:
        problem = by_id.get(name)
        results: list[dict[str, Any] | None] = []
        for number, found in enumerate(scored):
            entry = found.get(name)
            if entry is not None:
                places = [(number, name, sample["sample_index"]) for sample in entry["samples"]]
                language = problem.language if problem else ""
                entry = {key: entry[key] for key in ("mode", "reason", "tags", "samples")}
                entry["samples"] = [
                    {
                        **{key: sample[key] for key in ("verdict", "detail", "untrusted")},
                        "sample_index": place[2],
                        "program": tokens_of(programs[place], language) if place in programs else None,
                        "told": told.get(place, {}),
                    }
                    for place, sample in zip(places, entry["samples"], strict=True)
                ]
            results.append(entry)
        prompt = "\n\n".join(message["content"] for message in problem.messages) if problem else ""
        tags = next(entry["tags"] for entry in results if entry)
        entries.append({"problem_id": name, "tags": tags, "prompt": prompt, "results": results})
    return entries


def _models(paths: Sequence[str], every: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each model's line of the table of scores; the scores are those that all results have."""
    names = [name for name in every[0]["pass_at_k"] if all(name in results["pass_at_k"] for results in every)]
    tags = sorted({tag for results in every for tag in results["tags"]})
    compared = compare(tuple(paths), 1)["comparisons"] if len(paths) > 1 else {}
    models = []
    for path, results in zip(paths, every, strict=True):
        bases = [(", base tests alone", results["base"])] if results["base"] else []
        groups = [("", results), *bases, *((f" {tag}", results["tags"][tag]) for tag in tags if tag in results["tags"])]
        bars = [
            {"name": name + tag, "value": group["pass_at_k"][name], **_ends(group["intervals"][name])}
            for tag, group in groups
            for name in names
        ]
        cells = {"verdicts": ", ".join(f"{name} {count}" for name, count in results["verdicts"].items() if count)}
        cells |= {name: f"{value:.4f}" for name, value in results["measures"].items()}
        cells["isolation"] = "; ".join(isolation_notes(results)) or results["settings"]["isolation"]
        cells["untrusted"] = str(results["num_untrusted"])
        if compared:
            cells["against the first"] = _difference(compared[path]) if path in compared else ""
        models.append({"name": path, "bars": bars, "cells": cells})
    return models


def _ends(interval: Mapping[str, Any]) -> dict[str, float]:
    return {"low": interval["low"], "high": interval["high"]}


def _difference(found: Mapping[str, Any]) -> str:
    word = "" if found["p_value"] < SIGNIFICANT else ", undecided"
    chance = shown_chance(found["p_value"])
    return f"{found['difference']:+.4f}, p {chance} ({found['test']}){word}"
