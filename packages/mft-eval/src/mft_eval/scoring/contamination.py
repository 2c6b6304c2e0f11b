"""What mft-data's manifest of the training data tells about the problems that were scored."""

from pathlib import Path
from typing import Any

import orjson

from mft_eval.errors import EvalError

_FORMAT_VERSION = "1"


def num_contaminated(results: dict[str, Any], dataset: str) -> tuple[int, str] | None:
    """How many conversations of a dataset directory shared words with a problem, and whether mft-data's answer was
    "drop" or "report"; None where it was not asked about this problems file.

    The number is over all the problem files that the dataset was compared with.
    """
    path = Path(dataset) / "manifest.json"
    try:
        manifest = orjson.loads(path.read_bytes())
    except OSError as error:
        raise EvalError(f"cannot read the dataset: {error.strerror}", where=str(path)) from error
    except orjson.JSONDecodeError as error:
        raise EvalError(f"not a manifest: {error}", where=str(path)) from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != _FORMAT_VERSION:
        what = f'not a dataset of format_version "{_FORMAT_VERSION}"'
        raise EvalError(what, where=str(path), fix="give what mft-data build writes")
    compared = {file["sha256"] for file in manifest["decontaminated"]}
    if results["problems_source"]["sha256"] not in compared:
        return None
    return sum(task["conversations"]["contaminated"] for task in manifest["tasks"]), manifest["contaminated"]
