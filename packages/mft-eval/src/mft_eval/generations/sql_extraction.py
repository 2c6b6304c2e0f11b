"""From a completion to an SQL query."""

import re
import sqlite3

from mft_eval.generations.extraction import drop_thinking, fenced_blocks

_START = re.compile(r"^\s*(?:select|with|values)\b", re.IGNORECASE | re.MULTILINE)


def extract_sql(completion: str) -> str:
    """The query: the first fenced block that holds one, else the text from its first line of SQL on; up to its end.

    A completion without any is handed on as it is.
    """
    completion = drop_thinking(completion)
    blocks = fenced_blocks(completion)
    code = next((block for block in blocks if _START.search(block)), blocks[0] if blocks else completion)
    match = _START.search(code)
    code = code[match.start() :] if match else code
    for end in (found.end() for found in re.finditer(";", code)):
        if sqlite3.complete_statement(code[:end]):
            return code[:end].strip()
    return code.strip() if blocks else code.partition("\n\n")[0].strip()
