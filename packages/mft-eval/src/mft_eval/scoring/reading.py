"""Reading results files back."""

from pathlib import Path
from typing import Any

import orjson

from mft_eval.errors import EvalError
from mft_eval.scoring.results import FORMAT_VERSION


def read_results(path: str) -> dict[str, Any]:
    """The results in the file `path`; raises for any other file or version."""
    try:
        results = orjson.loads(Path(path).read_bytes())
    except OSError as error:
        raise EvalError(f"cannot read the results: {error.strerror}", where=path) from error
    except orjson.JSONDecodeError as error:
        raise EvalError(f"not a results file: {error}", where=path) from error
    if not isinstance(results, dict) or "format_version" not in results or "problems" not in results:
        raise EvalError("not a results file", where=path, fix="give what mft-eval score writes")
    if results["format_version"] != FORMAT_VERSION:
        what = f'results of format_version "{results["format_version"]}", this mft-eval reads "{FORMAT_VERSION}"'
        raise EvalError(what, where=path, fix="score the generations again")
    return results
