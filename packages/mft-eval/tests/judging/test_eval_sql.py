"""Text-to-SQL: right queries pass however they are written, wrong and hostile ones do not."""

import json
import sqlite3

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mft_eval.cli import main
from mft_eval.generations.sql_extraction import extract_sql
from mft_eval.problems.problem import Problem, SqlTest
from mft_eval.problems.sql_databases import NUM_DATABASES, is_ordered_query, make_cases
from mft_eval.sandbox.sql_host import open_database, shown_rows

SCHEMA = """CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT NOT NULL, country TEXT, population INT);
CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, age INT, height REAL, born DATE,
    city_id INT REFERENCES city(id));
"""
# Reference, another right query, a wrong one.
QUESTIONS = {
    "filter": (
        "SELECT name FROM person WHERE age > 5",
        "SELECT name FROM person WHERE NOT age <= 5",
        "SELECT name FROM person WHERE age >= 5",
    ),
    "join": (
        "SELECT p.name, c.name FROM person p JOIN city c ON p.city_id = c.id",
        "SELECT p.name, c.name FROM city c, person p WHERE c.id = p.city_id",
        "SELECT p.name, c.name FROM person p LEFT JOIN city c ON p.city_id = c.id",
    ),
    "count": ("SELECT count(*) FROM person", "SELECT sum(1) FROM person", "SELECT count(age) FROM person"),
    "average": (
        "SELECT avg(height) FROM person",
        "SELECT sum(height) / count(height) FROM person",
        "SELECT sum(height) / count(*) FROM person",
    ),
    "group": (
        "SELECT country, count(*) FROM city GROUP BY country",
        "SELECT country, count(*) AS n FROM city GROUP BY 1 ORDER BY n",
        "SELECT country, count(name) FROM city WHERE population > 1 GROUP BY country",
    ),
    "having": (
        "SELECT country FROM city GROUP BY country HAVING count(*) > 1",
        "SELECT country FROM (SELECT country, count(*) AS n FROM city GROUP BY country) WHERE n >= 2",
        "SELECT DISTINCT country FROM city",
    ),
    "order": (
        "SELECT name, age FROM person ORDER BY age DESC, id",
        "SELECT name, age FROM person ORDER BY age IS NULL, -age, id",
        "SELECT name, age FROM person ORDER BY age, id",
    ),
    "ties": (
        "SELECT age FROM person ORDER BY age",
        "SELECT age FROM person ORDER BY age, name",
        "SELECT age FROM person",
    ),
    "largest": (
        "SELECT name FROM city ORDER BY population DESC LIMIT 1",
        "SELECT name FROM city WHERE population = (SELECT max(population) FROM city) LIMIT 1",
        "SELECT name FROM city ORDER BY population LIMIT 1",
    ),
    "bag": (
        "SELECT country FROM city",
        "SELECT ALL country FROM city ORDER BY population",
        "SELECT DISTINCT country FROM city",
    ),
    "text": (
        "SELECT id FROM person WHERE name = 'O''Hara'",
        "SELECT id FROM person WHERE name IN ('O''Hara')",
        "SELECT id FROM person WHERE name LIKE 'o%'",
    ),
    "null": (
        "SELECT id FROM person WHERE age IS NULL",
        "SELECT id FROM person WHERE coalesce(age, -1) = -1",
        "SELECT id FROM person WHERE age = NULL",
    ),
    "none in": (
        "SELECT name FROM city WHERE id NOT IN (SELECT city_id FROM person WHERE city_id IS NOT NULL)",
        "SELECT name FROM city c WHERE NOT EXISTS (SELECT 1 FROM person p WHERE p.city_id = c.id)",
        "SELECT name FROM city WHERE id IN (SELECT city_id FROM person)",
    ),
    "date": (
        "SELECT count(*) FROM person WHERE born >= '2021-01-01'",
        "SELECT count(*) FROM person WHERE strftime('%Y', born) >= '2021'",
        "SELECT count(*) FROM person WHERE born > '2022-01-01'",
    ),
}
HOSTILE = {
    "is empty": "",
    "is prose": "I cannot answer this question.",
    "gives one row": "SELECT 1",
    "gives no rows": "SELECT name FROM person WHERE 0",
    "deletes": "DELETE FROM person",
    "deletes and returns": "DELETE FROM person RETURNING name",
    "is two": "SELECT name FROM person WHERE age > 5; DROP TABLE person",
    "attaches a file": "ATTACH '/tmp/x.db' AS x",
    "reads the tables' names": "SELECT name FROM sqlite_master",
    "sets a pragma": "PRAGMA query_only",
    "loads an extension": "SELECT load_extension('/usr/lib/x.so')",
    "reads a file": "SELECT readfile('/etc/passwd')",
    "writes a file": "VACUUM INTO '/tmp/x.db'",
    "never ends": "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r",
    "gives rows for ever": "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r",
    "eats memory": "SELECT hex(zeroblob(900000000))",
    "joins itself": "SELECT a.name FROM " + ", ".join(f"person {letter}" for letter in "abcdefghijkl"),
    "is deep": "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "breaks out of lines": "SELECT 'x' || char(10) || 'text:61' FROM person",
    "has a null byte": "SELECT name FROM person WHERE age > 5 AND '\0' = ''",
    "has lone surrogates": "SELECT '\ud800'",
    "is Python": "import os; os._exit(0)",
    "comments": "-- SELECT name FROM person WHERE age > 5",
    "starts a transaction": "BEGIN",
    "makes a table": "CREATE TABLE x AS SELECT 1",
}


def problem(query):
    return Problem("p", (), "", SqlTest(SCHEMA, query), query, language="sql")


@pytest.mark.parametrize("name", QUESTIONS)
def test_right_queries_pass_and_wrong_ones_do_not(judge_problem, name):
    reference, right, wrong = QUESTIONS[name]
    asked = problem(reference)
    verdicts = [judge_problem(asked, query).verdict for query in (reference, right, wrong)]
    assert verdicts == ["passed", "passed", "wrong"]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_rows_pass_for_those_asked_of_a_query_that(judge_problem, name):
    judgement = judge_problem(problem(QUESTIONS["filter"][0]), HOSTILE[name])
    assert judgement.verdict in ("wrong", "exception", "timeout", "killed", "refused", "out-of-memory"), judgement


def test_a_right_query_passes_after_them(judge_problem):
    assert judge_problem(problem(QUESTIONS["filter"][0]), QUESTIONS["filter"][1]).verdict == "passed"


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_has_ten_databases_and_most_have_rows(name):
    cases = make_cases(SCHEMA, QUESTIONS[name][0])
    assert len(cases) == NUM_DATABASES >= 10
    assert len({script for script, _, _ in cases}) == len(cases)
    assert sum(bool(rows) for _, _, rows in cases) >= 10
    assert cases == make_cases(SCHEMA, QUESTIONS[name][0])


def test_rows_of_the_schema_itself_are_the_first_database():
    schema = SCHEMA + "INSERT INTO city VALUES (7, 'here', 'there', 1);"
    (script, _, rows), *others = make_cases(schema, "SELECT name FROM city")
    assert (script, rows) == (schema, f"text:{b'here'.hex()}\n")
    assert not any("here" in other for other, _, _ in others)


@pytest.mark.parametrize(
    ("query", "is_ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 3", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'order by' FROM t -- order by", False),
        ("SELECT a FROM (SELECT a FROM t ORDER BY (a)) ORDER BY a", True),
        ('SELECT "order by" FROM t', False),
    ],
)
def test_only_an_order_outside_of_parentheses_counts(query, is_ordered):
    assert is_ordered_query(query) == is_ordered


VALUES = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(), st.binary())


@given(st.lists(st.tuples(VALUES, VALUES)), st.randoms())
def test_rows_are_equal_in_any_order_unless_it_counts(rows, random):
    other = list(rows)
    random.shuffle(other)
    assert shown_rows(rows, is_ordered=False) == shown_rows(other, is_ordered=False)
    assert (shown_rows(rows, is_ordered=True) == shown_rows(other, is_ordered=True)) or rows != other


@pytest.mark.parametrize(
    ("values", "shown"), [((2.0, 2), "2 2"), ((-0.0, None), "0 null"), (("a b", b"\x01"), "text:612062 blob:01")]
)
def test_values_are_shown_as_they_compare(values, shown):
    assert shown_rows([values], is_ordered=True) == f"{shown}\n"


def test_a_database_can_only_be_read():
    database = open_database(SCHEMA)
    with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
        database.execute("DROP TABLE city")


@pytest.mark.parametrize(
    "completion",
    [
        "```sql\nSELECT 1 FROM t\n```",
        "Sure:\n```\nSELECT 1 FROM t;\n```\nThis counts.",
        "SELECT 1 FROM t;\n\nQuestion: another?\nSELECT 2",
        "SELECT 1 FROM t\n\nThis selects one.",
        "<think>SELECT 2</think>The query is:\n\nSELECT 1 FROM t",
    ],
)
def test_the_query_is_found_in(completion):
    assert extract_sql(completion).rstrip(";") == "SELECT 1 FROM t"


def test_a_semicolon_in_a_text_ends_nothing():
    assert extract_sql("SELECT ';' FROM t; SELECT 2") == "SELECT ';' FROM t;"


@pytest.mark.whole
def test_both_shapes_are_asked_and_scored(tmp_path):
    reference = QUESTIONS["join"][0]
    records = [
        {"problem_id": "own", "language": "sql", "setup": SCHEMA, "prompt": "Who lives where?", "reference": reference},
        {"question": "Who lives where?", "context": SCHEMA, "answer": reference},
    ]
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(record) + "\n" for record in records))
    asked = CliRunner().invoke(main, ["problems", str(problems)])
    lines = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [line["problem_id"] for line in lines] == ["own", "sql/2"]
    assert lines[0]["messages"] == lines[1]["messages"]
    assert SCHEMA.strip() in lines[0]["messages"][0]["content"]
    answers = [
        {"problem_id": name, "sample_index": index, "completion": completion}
        for name in ("own", "sql/2")
        for index, completion in enumerate((f"```sql\n{reference}\n```", ""))
    ]
    scored = CliRunner().invoke(
        main, ["score", str(problems), "-"], input="".join(map("{}\n".format, map(json.dumps, answers)))
    )
    results = json.loads(scored.stdout)
    assert [[sample["verdict"] for sample in found["samples"]] for found in results["problems"]] == [
        ["passed", "exception"]
    ] * 2
    assert results["num_untrusted"] == 0


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"setup": "CREATE TABEL x"}, "not SQLite's SQL"),
        ({"reference": "SELECT x FROM y"}, "no such table: y"),
        ({"reference": "DELETE FROM city"}, "not SQLite's SQL"),
    ],
)
def test_a_wrong_problem_is_one_clear_error(tmp_path, fields, told):
    record = {"problem_id": "p", "language": "sql", "setup": SCHEMA, "prompt": "Who?", "reference": "SELECT 1"}
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps(record | fields) + "\n")
    result = CliRunner().invoke(main, ["problems", str(problems)])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert told in result.stderr
    assert "line 1" in result.stderr
