"""Joining the parts of a run into the results of the whole."""

from typing import Any

from mft_eval.errors import EvalError
from mft_eval.scoring.reading import read_results
from mft_eval.scoring.results import make_results


def join(paths: tuple[str, ...]) -> dict[str, Any]:
    """The results that one run over all problems would have given; every part has to be there once."""
    parts: dict[int, tuple[str, dict[str, Any]]] = {}
    header: dict[str, Any] = {}
    num_parts = 0
    for path in paths:
        results = read_results(path)
        which, num_parts = map(int, results["settings"]["part"].split("/"))
        if which in parts:
            raise EvalError(f"part {which} is there twice: {parts[which][0]} and {path}")
        whole = _header(results)
        if header and whole != header:
            differing = ", ".join(key for key in whole if whole[key] != header[key])
            raise EvalError(f"{path} is of another run than {paths[0]}", fix=f"they differ in {differing}")
        header = whole
        parts[which] = (path, results)
    missing = sorted(set(range(1, num_parts + 1)) - parts.keys())
    if missing:
        raise EvalError(f"part {missing[0]} of {num_parts} is missing", fix="give every part")
    every = [results for _, results in parts.values()]
    problems = sorted((problem for results in every for problem in results["problems"]), key=_index)
    broken = sorted((problem for results in every for problem in results["broken"]), key=_index)
    header = {**header, "settings": {**header["settings"], "part": "1/1"}}
    return make_results(header, problems, broken, sum(results["num_missing"] for results in every))


def _header(results: dict[str, Any]) -> dict[str, Any]:
    keys = ("format_version", "producer", "problems_source", "generations_source", "settings", "environment")
    header = {key: results[key] for key in keys}
    of = results["settings"]["part"].split("/")[1]
    return {**header, "settings": {**results["settings"], "part": of}}


def _index(problem: dict[str, Any]) -> int:
    return problem["index"]
