"""Writing the prompts of a problems file, or of another kind of task made from it."""

import orjson

from mft_eval.commands.kinds import problems_of_kind
from mft_eval.errors import EvalError
from mft_eval.judging.isolation import settle
from mft_eval.problems.prompts import STYLES
from mft_eval.problems.reading import read_problems
from mft_eval.problems.task_kind import TaskKind


def write_prompts(source: str, style: str, kind: TaskKind, num_workers: int, isolation: str) -> bytes:
    """The prompts as JSONL; problems that cannot be made into the kind of task are left out."""
    problems = problems_of_kind(read_problems(source).problems, kind, num_workers, settle(isolation))
    if not problems:
        raise EvalError(f"no problem can be made into the kind {kind.name}", where=source)
    prompts = [STYLES[style](problem) for problem in problems]
    return b"".join(orjson.dumps(prompt, option=orjson.OPT_APPEND_NEWLINE) for prompt in prompts)
