"""Every kind of bad record is refused for its own reason, and good ones are read as they are."""

import gzip

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mft_data.conversation import Turn, parse_conversation
from mft_data.errors import DataError, RecordError
from mft_data.records import MaxRejects, Reject, Rejects, parse_json, read_conversations
from mft_data.sources import find_files, read_lines

HUMAN = {"role": "human", "content": "h"}
BOT = {"role": "bot", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
SILENT = BOT | {"train": False}

BAD_ROUNDS = [
    ("h", 'field "chat_rounds" is a string, not a list'),
    ([], 'field "chat_rounds" is empty'),
    ([3], "round 1 is a number, not an object"),
    ([{"content": "h"}], 'field "role" of round 1 is missing'),
    ([{"role": None, "content": "h"}], 'field "role" of round 1 is null, not a string'),
    ([{"role": "human"}], 'field "content" of round 1 is missing'),
    ([HUMAN, {"role": "bot", "content": ["b"]}], 'field "content" of round 2 is a list, not a string'),
    ([{"role": "sytem", "content": "s"}], 'unknown role "sytem" in round 1'),
    ([HUMAN | {"train": True}, BOT], 'round 1 is a human turn with "train"'),
    ([HUMAN, BOT | {"train": 0}], '"train" of round 2 is a number, not true or false'),
    ([HUMAN, BOT | {"content": ""}], "round 2 is a bot turn without content"),
    (
        [HUMAN, BOT | {"content": "a\ufdd0"}],
        'field "content" of round 2 holds the noncharacter U+FDD0, which is reserved',
    ),
    ([SYSTEM, HUMAN], "the conversation has no bot turn"),
    ([BOT], "round 1 is a bot turn where a human turn has to come"),
    ([HUMAN, HUMAN, BOT], "round 2 is a human turn where a bot turn has to come"),
    ([HUMAN, BOT, BOT], "round 3 is a bot turn where a human turn has to come"),
    ([HUMAN, SYSTEM, BOT], "round 2 is a system turn, which may only be the first"),
    ([HUMAN, BOT, HUMAN], "the last round is a human turn without an answer"),
    ([HUMAN, SILENT], 'every bot turn has "train": false, which leaves nothing to learn'),
]
BAD_LINES = [
    (b"{", "the line is not JSON (unexpected end of data"),
    (b"[1]", "the record is a list, not an object"),
    (b'"chat_rounds"', "the record is a string, not an object"),
    (b"{}", "the record has none of the fields chat_rounds, messages, text"),
    (b'{"text": NaN}', "the line is not JSON (unexpected character"),
    (b'{"text": "\xff"}', "the line is not JSON (str is not valid UTF-8"),
    (b'{"text": "\\ud800"}', "the line is not JSON (no low surrogate in string"),
    (b'{"text": "\x00"}', "the line is not JSON (unexpected control character in string"),
    (b'{"text": ""}', 'field "text" is empty'),
    (b'{"text": "a"} {}', "the line is not JSON (unexpected content after document"),
    (b"\xef\xbb\xbf{}", "the line is not JSON (UTF-8 byte order mark (BOM) is not supported"),
    (b'{"text": ' + b"[" * 100_000, "the line is not JSON (depth limit exceeded"),
]


@pytest.mark.parametrize(("rounds", "reason"), BAD_ROUNDS)
def test_bad_rounds_are_refused_with_their_reason(rounds, reason):
    with pytest.raises(RecordError) as raised:
        parse_conversation({"chat_rounds": rounds}, "chat_rounds")
    assert raised.value.reason == reason


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_bad_lines_are_refused_with_their_reason(write_task, line, reason):
    (file,) = find_files(write_task("t", [line]))
    rejects = Rejects(MaxRejects(5))
    assert list(read_conversations("t", file, None, rejects)) == [(1, None)]
    (reject,) = rejects.entries
    assert reject.reason.startswith(reason)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["chat_rounds", "role", "content", "train"]), inner)
        ),
        max_leaves=12,
    )
)
def test_no_json_raises_anything_but_a_refusal(record):
    try:
        conversation = parse_conversation(record, "chat_rounds")
    except RecordError:
        return
    assert any(turn.is_supervised for turn in conversation)


def test_roles_and_train_flags_are_read_as_they_are():
    rounds = [SYSTEM, {"role": "user", "content": ""}, SILENT, HUMAN, {"role": "assistant", "content": " b\u00a0\n"}]
    assert parse_conversation({"messages": rounds}, "messages") == (
        Turn("system", "s", False),
        Turn("human", "", False),
        Turn("bot", "b", False),
        Turn("human", "h", False),
        Turn("bot", " b\u00a0\n", True),
    )


def test_a_nul_character_is_text_like_any_other():
    record = parse_json(b'{"text": "a\\u0000b"}')
    assert parse_conversation(record, "text") == (Turn("text", "a\0b", True),)


def test_an_unknown_role_names_the_nearest_valid_one():
    with pytest.raises(RecordError) as raised:
        parse_conversation({"chat_rounds": [{"role": "Assitant", "content": "x"}]}, "chat_rounds")
    assert raised.value.fix == 'write "assistant" (the roles are system, human, user, bot, assistant)'


def test_the_first_recognised_record_decides_for_its_file(write_task):
    good = {"messages": [HUMAN, BOT]}
    (file,) = find_files(write_task("t", [{"x": 1}, good, b" ", {"chat_rounds": [HUMAN, BOT]}, good]))
    rejects = Rejects(MaxRejects(2))
    read = list(read_conversations("t", file, None, rejects))
    assert [(line, conversation is not None) for line, conversation in read] == [
        (1, False),
        (2, True),
        (4, False),
        (5, True),
    ]
    assert rejects.entries[1] == Reject("t", "part.jsonl", 4, 'field "messages" is missing')


lines_of_text = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")), max_size=20)


@given(lines=lines_of_text, final_newline=st.booleans(), split=st.integers(0, 20))
def test_compressed_files_have_the_lines_of_plain_ones(tmp_path_factory, lines, final_newline, split):
    folder = tmp_path_factory.mktemp("lines")
    first, second = "".join(f"{line}\n" for line in lines[:split]), "\n".join(lines[split:]) + "\n" * final_newline
    content = [first.encode(), second.encode()]
    (folder / "a.jsonl").write_bytes(b"".join(content))
    (folder / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, content)))
    # Written as a stream: without the content's size in the frame.
    frames = [zstandard.ZstdCompressor(write_content_size=False).compress(part) for part in content]
    (folder / "a.jsonl.zst").write_bytes(b"".join(frames))
    plain, zipped, zstd = ([*read_lines(folder / name)] for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"))
    assert plain == zipped == zstd
    assert all(line.strip() for _, line in plain)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_damaged_compressed_files_are_named(tmp_path, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    content = b"".join(b'{"text": "%d"}\n' % number for number in range(1000))
    whole = gzip.compress(content) if suffix == "gz" else zstandard.compress(content)
    for damaged in (whole[:-20], whole[:50], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(
            DataError, match=rf"the {'gzip' if suffix == 'gz' else 'zstd'} file is .*a\.jsonl\.{suffix}"
        ):
            list(read_lines(path))
