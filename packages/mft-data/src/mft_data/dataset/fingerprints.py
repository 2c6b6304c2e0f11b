"""The manifest's sum of itself, which tells a finished manifest from one that was changed."""

import hashlib
from typing import Any

import orjson

MANIFEST_OPTIONS = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """The file manifest.json; its last field, `content_sha256`, is the hex sha256 of the file without that field."""
    body = {name: value for name, value in manifest.items() if name != "content_sha256"}
    digest = hashlib.sha256(orjson.dumps(body, option=MANIFEST_OPTIONS)).hexdigest()
    return orjson.dumps({**body, "content_sha256": digest}, option=MANIFEST_OPTIONS)
