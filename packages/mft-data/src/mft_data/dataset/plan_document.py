"""The plan of a build on disk: whose it is, and what tells the plans of two builds apart, in words."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from pathlib import Path

PRODUCER = "mft-data "


def is_plan(path: Path) -> bool:
    """Whether a file is the plan of a build; an empty one is that of a build that ended before it had one."""
    try:
        content = path.read_bytes()
        return not content or orjson.loads(content)["settings"]["producer"].startswith(PRODUCER)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def plan_difference(first: bytes, second: bytes) -> str:
    """The first thing that differs in the plans of two builds: a file, or an option under its name in the plan."""
    plans = [orjson.loads(first), orjson.loads(second)]
    for one, other in zip(*(plan["sources"] for plan in plans), strict=False):
        if one["task"] == other["task"] and one["settings"] != other["settings"]:
            name = next(key for key, value in one["settings"].items() if other["settings"].get(key) != value)
            return f'{name} of task "{one["task"]}"'
    for one, other in zip_longest(*(source_entries(plan) for plan in plans)):
        if one != other:
            return f"the file {(one or other)[0]}"
    for group in ("settings", "manifest"):
        for name in plans[0][group] | plans[1][group]:
            if plans[0][group].get(name) != plans[1][group].get(name):
                return name
    return "nothing"


def source_entries(plan: dict[str, Any]) -> list[tuple[str, Any]]:
    """The name and what is known of every file of a plan."""
    return [
        (f"{source['task']}/{file['file']}", [source["split"], file])
        for source in plan["sources"]
        for file in source["files"]
    ]
