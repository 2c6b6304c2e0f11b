"""Text-to-SQL problems: a question and tables, answered by a query whose rows are compared on made databases."""

import sqlite3
from contextlib import closing
from typing import Any

from mft_eval.errors import EvalError
from mft_eval.problems.fields import text, user_message
from mft_eval.problems.problem import Problem, SqlTest
from mft_eval.sandbox.sql_host import open_database

_ASK = "Write one SQL query (SQLite) that answers the question. Answer with the query in one fenced block of SQL."


def sql_create_context_problem(record: dict[str, Any], where: str) -> Problem:
    """The shape of sql-create-context: `question`, `context` (tables) and `answer`; its line's number is its name."""
    schema, query = text(record, "context", where), text(record, "answer", where)
    return Problem(
        problem_id=f"sql/{where.rpartition(' ')[2]}",
        messages=sql_messages(schema, text(record, "question", where)),
        prompt_code="",
        test=sql_test(schema, query, where),
        reference=query,
        language="sql",
    )


def sql_messages(schema: str, question: str) -> tuple[dict[str, str], ...]:
    """What a model is asked."""
    return user_message(f"{_ASK}\n\n```sql\n{schema.strip()}\n```\n\n{question.strip()}")


def sql_test(schema: str, query: str, where: str) -> SqlTest:
    """The test; raises where SQLite takes the tables or the query for wrong."""
    try:
        with closing(open_database(schema)) as database:
            cursor = database.execute(query)
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise EvalError(f"the tables or the reference query are not SQLite's SQL: {error}", where=where) from error
    if cursor.description is None:
        raise EvalError("the reference query gives no rows", where=where, fix="give a SELECT")
    return SqlTest(schema, query)
