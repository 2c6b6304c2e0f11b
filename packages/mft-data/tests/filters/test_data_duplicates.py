"""Duplicates are found in order, the first occurrence stays, and near ones are those that are alike."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_data.filters.duplicates import MAX_SHARING, NUM_HASHES, Duplicates, NearIndex, band_keys, signatures
from mft_data.reading.conversation import Turn

WORDS = [f"word{number}" for number in range(400)]


def conversation(*contents):
    """Human and bot turns in alternation."""
    return tuple(Turn(("human", "bot")[place % 2], content, bool(place % 2)) for place, content in enumerate(contents))


def digests(conversations):
    """16 bytes of each conversation, as V16."""
    content = b"".join(hashlib.blake2b(repr(turns).encode(), digest_size=16).digest() for turns in conversations)
    return np.frombuffer(content, "V16")


def flags(mode, conversations, batches=(None,)):
    """What is_duplicate says of all conversations, given in slices that end at `batches`."""
    duplicates = Duplicates(mode)
    found, start = [], 0
    for stop in batches:
        part = conversations[start:stop]
        found += duplicates.is_duplicate(digests(part), signatures(part)).tolist()
        start = stop
    return found


def jaccard(left, right):
    """The Jaccard similarity of the shingles of two conversations, computed in full."""
    shingles = []
    for turns in (left, right):
        words = " ".join(turn.content for turn in turns).lower().split()
        shingles.append({tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))})
    return len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])


def edited(places):
    """A long conversation with the words at these places changed."""
    answer = [f"edit{place}" if place in places else WORDS[place] for place in range(100, 160)]
    return conversation(" ".join(WORDS[:60]), " ".join(answer))


# Few different ones, so that many repeat.
some_conversations = st.lists(
    st.one_of(
        st.sets(st.integers(100, 159), max_size=3).map(edited),
        st.lists(st.sampled_from(["a", "b", " ", "A"]), max_size=3).map(
            lambda parts: conversation("".join(parts), "x")
        ),
    ),
    max_size=12,
)


def test_worked_example_of_both_modes():
    first = conversation(" ".join(WORDS[:200]), "yes")
    respelled = conversation("  ".join(WORDS[:200]).upper(), "Yes")
    renamed = conversation(" ".join("renamed" if word == "word150" else word for word in WORDS[:200]), "yes")
    other = conversation(" ".join(WORDS[200:]), "yes")
    stream = [first, respelled, other, first, renamed]
    assert flags("exact", stream) == [False, False, False, True, False]
    assert flags("near", stream) == [False, True, False, True, True]


def test_digests_are_taken_as_bytes_or_as_two_integers():
    as_bytes = digests([conversation("a", "b"), conversation("a", "c"), conversation("a", "b")])
    as_integers = as_bytes.view(np.uint64).reshape(-1, 2)
    for given_digests in (as_bytes, as_integers):
        assert Duplicates("exact").is_duplicate(given_digests).tolist() == [False, False, True]


@given(some_conversations)
def test_exact_keeps_the_first_of_each(stream):
    assert flags("exact", stream) == [turns in stream[:place] for place, turns in enumerate(stream)]


@given(some_conversations)
def test_what_is_kept_has_no_duplicates(stream):
    for mode in ("exact", "near"):
        kept = [turns for turns, is_duplicate in zip(stream, flags(mode, stream), strict=True) if not is_duplicate]
        assert not any(flags(mode, kept))


@given(some_conversations)
def test_every_exact_duplicate_is_a_near_one(stream):
    exact, near = flags("exact", stream), flags("near", stream)
    assert all(of_near for of_exact, of_near in zip(exact, near, strict=True) if of_exact)


@given(some_conversations, st.lists(st.integers(0, 12), max_size=3).map(sorted))
def test_batches_make_no_difference(stream, borders):
    for mode in ("exact", "near"):
        assert flags(mode, stream, [*borders, len(stream)]) == flags(mode, stream)


@given(some_conversations)
def test_a_near_duplicate_is_like_something_kept_before_it(stream):
    kept = []
    for turns, is_duplicate in zip(stream, flags("near", stream), strict=True):
        # 0.65 is almost five standard errors below the threshold.
        assert not is_duplicate or max(jaccard(turns, other) for other in kept) > 0.65
        if not is_duplicate:
            kept.append(turns)


@given(st.integers(0, 299), st.text(st.characters(categories=["L", "N"]), min_size=1))
def test_one_identifier_changed_in_a_long_text_is_near(place, name):
    left = conversation("Explain this.", " ".join(WORDS[:300]))
    right = conversation("Explain this.", " ".join([*WORDS[:place], name, *WORDS[place + 1 : 300]]))
    assert flags("near", [left, right]) == [False, True]


def test_texts_that_share_half_are_not_near():
    stream = [
        conversation(" ".join(WORDS[:200]), " ".join(f"answer{number}x{word}" for word in range(200)))
        for number in range(50)
    ]
    assert not any(flags("near", stream))


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("size", [10, 100, 1000])
def test_signatures_estimate_the_similarity(similarity, size):
    shared = round(size * similarity)
    pairs = []
    for number in range(60):
        words = [f"{number}w{place}" for place in range(2 * size - shared + 8)]
        # Runs of words that overlap by `shared` shingles of five words.
        pairs += [conversation(" ".join(words[: size + 4]), ""), conversation(" ".join(words[size - shared : -4]), "")]
    values = signatures(pairs)
    estimates = (values[::2] == values[1::2]).mean(axis=1)
    expected = jaccard(pairs[0], pairs[1])
    # Six standard errors of the mean of 60 estimates by 128 values each.
    assert abs(estimates.mean() - expected) < 6 * np.sqrt(expected * (1 - expected) / NUM_HASHES / 60) + 1e-9


@given(some_conversations, st.data())
def test_a_signature_does_not_depend_on_its_batch(stream, data):
    order = data.draw(st.permutations(range(len(stream))))
    assert (signatures([stream[place] for place in order]) == signatures(stream)[order]).all()


def test_signatures_are_the_same_in_every_release():
    values = signatures(
        [conversation("Say \u00c9t\u00e9 twice, \n please", "\u00e9t\u00e9 \u00e9t\u00e9"), conversation("", "a")]
    )
    assert (values.shape, values.dtype) == ((2, NUM_HASHES), np.uint32)
    digest = hashlib.sha256(values.astype("<u4").tobytes()).hexdigest()
    assert digest == "a2a3c31346acd5b81aa3e089b0fd79d09229027c57d287059c4c1139e755796a"


def test_signatures_do_not_depend_on_the_process_and_survive_a_fork():
    code = (
        "import os\n"
        "from mft_data.reading.conversation import Turn\n"
        "from mft_data.filters.duplicates import signatures\n"
        "turns = (Turn('human', 'one two three four five six', False), Turn('bot', 'seven', True))\n"
        "values = signatures([turns] * 1000)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(int((signatures([turns] * 1000) != values).any()))\n"
        "print(os.waitpid(child, 0)[1], values.tolist())"
    )
    outputs = set()
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60)
        outputs.add(run.stdout)
    (output,) = outputs
    assert output.startswith(b"0 [[")


def test_many_signatures_in_one_band_are_all_compared():
    # All share their first 13 bands and have 108 of 128 values in common, one short of the threshold.
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**32, NUM_HASHES, dtype=np.uint32)
    values = np.tile(base, (40, 1))
    values[:, 108:] = rng.integers(0, 2**32, (40, 20), dtype=np.uint32)
    index = NearIndex()
    for signature, bands in zip(values, band_keys(values).tolist(), strict=True):
        assert not index.has_near(signature, bands)
        index.add(signature, bands)
    values[:, 108] ^= 1
    near = [
        index.has_near(signature, bands) for signature, bands in zip(values, band_keys(values).tolist(), strict=True)
    ]
    assert near == [True] * 40


def test_bands_of_equal_values_in_other_places_have_other_keys():
    keys = band_keys(np.zeros((1, NUM_HASHES), np.uint32))
    assert len(set(keys[0].tolist())) == 16


def test_what_is_left_out_neither_repeats_nor_is_repeated():
    stream = [conversation(" ".join(WORDS[:200]), "yes")] * 3
    duplicates = Duplicates("near")
    found = duplicates.is_duplicate(digests(stream), signatures(stream), np.array([True, False, True]))
    assert found.tolist() == [False, False, False]
    assert duplicates.is_duplicate(digests(stream), signatures(stream)).tolist() == [True, True, True]


def test_the_system_turn_is_signed_only_where_nothing_else_is_said():
    system = Turn("system", " ".join(WORDS), False)
    distinct = [(system, *conversation(f"question {number} of many others here", f"{number}")) for number in range(30)]
    assert not any(flags("near", distinct))
    silent = [
        (Turn("system", " ".join(WORDS[start : start + 200]), False), *conversation("", " ")) for start in (0, 200)
    ]
    assert flags("near", [silent[0], silent[1], silent[0]]) == [False, False, True]


def templated(number, rng):
    """A signature as that of one long prompt with a small part of its own: alike in seven tenths of its values."""
    values = np.arange(NUM_HASHES, dtype=np.uint32)
    own = rng.random(NUM_HASHES) < 0.3
    values[own] = rng.integers(0, 2**32, own.sum(), dtype=np.uint32)
    return values


def test_the_work_for_a_templated_prompt_does_not_grow_with_their_number(monkeypatch):
    rng = np.random.default_rng(0)
    index, compared = NearIndex(), np.zeros(6000)
    frombuffer = np.frombuffer

    def counted(content, dtype):
        compared[len(index.signatures)] = len(content) / (4 * NUM_HASHES)
        return frombuffer(content, dtype)

    monkeypatch.setattr(np, "frombuffer", counted)
    values = np.stack([templated(number, rng) for number in range(6000)])
    for signature, bands in zip(values, band_keys(values).tolist(), strict=True):
        assert not index.has_near(signature, bands)
        index.add(signature, bands)
    assert compared[5000:].mean() < 2 * compared[1000:2000].mean()
    assert compared.max() < 31 * MAX_SHARING


def test_repeats_among_templated_prompts_are_found():
    rng = np.random.default_rng(1)
    index = NearIndex()
    values = np.stack([templated(number, rng) for number in range(4000)])
    for signature, bands in zip(values, band_keys(values).tolist(), strict=True):
        index.add(signature, bands)
    repeats = values[rng.choice(len(values), 300, replace=False)]
    repeats[:, rng.integers(0, NUM_HASHES, 2)] ^= 1  # two of 128 values changed
    found = [index.has_near(*pair) for pair in zip(repeats, band_keys(repeats).tolist(), strict=True)]
    assert np.mean(found) > 0.95
