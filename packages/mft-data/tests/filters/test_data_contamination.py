"""A conversation that repeats a problem is found however it is spelled, and one of other words never is."""

import gzip

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_data.errors import DataError
from mft_data.filters.contamination import MIN_NGRAM_WORDS, NGRAM_WORDS, is_contaminated, problem_ngrams, split_words
from mft_data.reading.conversation import Turn

PROMPT = "Write a function to find the largest of the two given strings of digits."
HUMAN_EVAL = {
    "task_id": "HumanEval/900",
    "prompt": 'def largest(a, b):\n    """Return the larger of two strings of digits, by value."""\n',
    "canonical_solution": "    return max(a, b, key=lambda digits: (len(digits.lstrip('0')), digits.lstrip('0')))\n",
    "test": "def check(candidate):\n    assert candidate('12', '3') == '12'\n    assert candidate('007', '8') == '8'\n",
    "entry_point": "largest",
}
MBPP = {
    "task_id": 900,
    "prompt": PROMPT,
    "code": "def largest(a, b):\n  return max(a, b, key=int)",
    "test_imports": [],
    "test_list": ["assert largest('12', '3') == '12'", "assert largest('007', '8') == '8'"],
}


def ngrams_of(path, *problems):
    """The n-grams of a problems file with these records."""
    path.write_bytes(b"".join(orjson.dumps(problem) + b"\n" for problem in problems))
    return problem_ngrams(path)


def conversation(*contents):
    """Human and bot turns in alternation."""
    return tuple(Turn(("human", "bot")[place % 2], content, bool(place % 2)) for place, content in enumerate(contents))


def flag(ngrams, *contents):
    """What is_contaminated says of one conversation."""
    (answer,) = is_contaminated([conversation(*contents)], ngrams).tolist()
    return answer


def test_worked_example(tmp_path):
    ngrams = ngrams_of(tmp_path / "p.jsonl", MBPP)
    stream = [
        conversation("Please:\nWRITE a function, to find the 'largest' of the two!", "def f(): ..."),
        conversation("Write a function to find the largest of the three", "def f(): ..."),
        conversation(
            "Which test?", "```python\nassert largest('12', '3') == '12'\nassert largest('007', '8') == '8'\n```"
        ),
        conversation("Sort a list.", "sorted(items)"),
    ]
    assert is_contaminated(stream, ngrams).tolist() == [True, False, True, False]


@pytest.mark.parametrize("field", ["prompt", "canonical_solution", "test"])
def test_every_part_of_a_humaneval_problem_counts(tmp_path, field):
    ngrams = ngrams_of(tmp_path / "p.jsonl", HUMAN_EVAL)
    assert flag(ngrams, "Look:", f"```{HUMAN_EVAL[field]}```")
    assert not flag(ngrams, f"{HUMAN_EVAL['task_id']} {HUMAN_EVAL['entry_point']}", "def largest(a, b):")


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_texts_are_found_at_any_depth_of_a_file_compressed_or_not(tmp_path, name):
    path = tmp_path / name
    content = orjson.dumps({"id": 1, "parts": [{"question": PROMPT}, 3, None]})
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert flag(problem_ngrams(path), PROMPT, "x")


words_of_problem = st.lists(
    st.text("abc\u00e9\u4e16\u03c9", min_size=1, max_size=4), min_size=MIN_NGRAM_WORDS, max_size=30
)
between = st.text(" \n\t.,;:!?'\"()[]{}_-\u00a0\u3002", min_size=1, max_size=3)
other_words = st.lists(st.text("xyz\u00e0", min_size=1, max_size=4), max_size=30).map(" ".join)


@st.composite
def respelled(draw, words):
    """The words with other case and other things between them."""
    cases = st.sampled_from([str.lower, str.upper, str.title])
    return "".join(draw(cases)(word) + draw(between) for word in words)


@given(st.data(), words_of_problem, other_words, other_words)
def test_a_problem_in_other_case_and_spacing_is_always_caught(tmp_path_factory, data, words, before, after):
    ngrams = ngrams_of(tmp_path_factory.mktemp("problems") / "p.jsonl", {"text": data.draw(respelled(words))})
    content = f"{before} {data.draw(respelled(words))} {after}"
    clean = conversation(before, after)
    found = is_contaminated([clean, conversation("x", content), conversation(content, "x"), clean], ngrams)
    assert found.tolist() == [False, True, True, False]


@given(words_of_problem, st.lists(other_words, min_size=1, max_size=6))
def test_texts_of_other_words_never_are(tmp_path_factory, words, contents):
    ngrams = ngrams_of(tmp_path_factory.mktemp("problems") / "p.jsonl", {"text": " ".join(words)})
    assert not is_contaminated([conversation(content, "xyz") for content in contents], ngrams).any()


@given(st.text())
def test_words_are_runs_of_letters_and_digits(text):
    spaced = "".join(character if character.isalnum() else " " for character in text.casefold())
    assert split_words(text) == spaced.split()


def test_stretches_are_ten_words_long_and_short_texts_count_whole(tmp_path):
    numbers = [f"n{number}" for number in range(20)]
    long = ngrams_of(tmp_path / "long.jsonl", {"text": " ".join(numbers)})
    assert len(long) == 20 - NGRAM_WORDS + 1
    assert flag(long, " ".join(numbers[5:15]), "x")
    assert not flag(long, " ".join(numbers[5:14]), "x")
    short = ngrams_of(tmp_path / "short.jsonl", {"text": " ".join(numbers[:8])}, {"text": " ".join(numbers[:7])})
    assert len(short) == 1
    assert flag(short, "in " + " ".join(numbers), "x")
    assert not flag(short, " ".join(numbers[1:]), "x")


def test_a_stretch_may_cross_turns_but_not_conversations(tmp_path):
    ngrams = ngrams_of(tmp_path / "p.jsonl", {"text": PROMPT})
    half = PROMPT.split()[:5], PROMPT.split()[5:10]
    assert flag(ngrams, " ".join(half[0]), " ".join(half[1]))
    apart = [conversation("x", " ".join(half[0])), conversation(" ".join(half[1]), "x")]
    assert not is_contaminated(apart, ngrams).any()


def test_ngrams_are_sorted_different_and_the_same_in_every_release(tmp_path):
    ngrams = ngrams_of(tmp_path / "p.jsonl", MBPP, MBPP, HUMAN_EVAL)
    assert ngrams.dtype == np.uint64
    assert (np.diff(ngrams) > 0).all()
    assert (len(ngrams), hex(ngrams[0])) == (21, "0x2788b6676a83756b")


def test_batches_without_words_are_clean(tmp_path):
    ngrams = ngrams_of(tmp_path / "p.jsonl", MBPP)
    assert is_contaminated([], ngrams).tolist() == []
    assert is_contaminated([conversation("", "!"), conversation("...", "?")], ngrams).tolist() == [False, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no problem has a text of 8 words or more, in {path}"),
        (b'{"task_id": 3}\n{"prompt": "Sort a list."}\n', "no problem has a text of 8 words or more, in {path}"),
        (
            b'{"prompt": "a"}\n{"prompt',
            "the line is not JSON (unexpected end of data, at character 9), in {path} line 2",
        ),
    ],
)
def test_unusable_files_are_named(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        problem_ngrams(path)
    assert raised.value.message == message.format(path=path)


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(orjson.dumps(MBPP))[:-9])
    with pytest.raises(DataError, match=r"the gzip file is damaged .*p\.jsonl\.gz"):
        problem_ngrams(path)
