"""Every kind of bad record is refused for its own reason, and good ones are read as they are."""

import gzip
import subprocess
import sys

import click
import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mft_data.errors import DataError, RecordError
from mft_data.option_values import parse_record_format
from mft_data.reading.conversation import Turn
from mft_data.reading.lines import read_lines
from mft_data.reading.pairs import ANSWER_FIELDS, QUESTION_FIELDS
from mft_data.reading.records import file_format, parse_json, parse_line
from mft_data.reading.shapes import RECORD_FORMATS, detect_format, parse_conversations
from mft_data.reading.sources import find_files

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
    ([HUMAN, {"role": "bot", "content": {}}], 'field "content" of round 2 is an object, not a string'),
    ([HUMAN, {"role": "bot", "content": ["b"]}], 'field "content" of round 2 has a part that is no text (a string)'),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, BOT],
        'field "content" of round 1 has a part that is no text ("image_url")',
    ),
    ([HUMAN, BOT | {"content": " \n"}], "round 2 is a bot turn without content"),
    ([HUMAN | {"weight": 1}, BOT], 'round 1 is a human turn with "weight"'),
    ([HUMAN, BOT | {"weight": 0.5}], '"weight" of round 2 is neither 0 nor 1'),
    ([HUMAN, BOT | {"weight": 0}], 'every bot turn has "train": false, which leaves nothing to learn'),
    ([{"role": "critic", "content": "4"}, BOT], 'unknown role "critic" in round 1'),
    ([{"role": "tool", "content": "4"}, BOT], "round 1 is a tool turn where a human turn has to come"),
    ([{"role": "sytem", "content": "s"}], 'unknown role "sytem" in round 1'),
    ([{"role": "", "content": "s"}], 'unknown role "" in round 1'),
    ([{"role": "a\nb", "content": "s"}], "unknown role 'a\\nb' in round 1"),
    ([{"role": "b" * 99, "content": "s"}], f'unknown role "{"b" * 40}..." in round 1'),
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
    ([SYSTEM, SYSTEM, HUMAN, BOT], "round 2 is a system turn, which may only be the first"),
    ([HUMAN, BOT, HUMAN], "the last round is a human turn without an answer"),
    ([HUMAN, SILENT], 'every bot turn has "train": false, which leaves nothing to learn'),
]
BAD_LINES = [
    (b"{", "the line is not JSON (unexpected end of data"),
    (b"[1]", "the record is a list, not an object"),
    (b'"chat_rounds"', "the record is a string, not an object"),
    (b"null", "the record is null, not an object"),
    (b"1.5", "the record is a number, not an object"),
    (b"false", "the record is a boolean, not an object"),
    (b"{}", "no known shape fits: the record has no fields"),
    (b'{"texts": "a", "id": 3}', 'no known shape fits: the record has "texts", "id"'),
    (b'{"text": NaN}', "the line is not JSON (unexpected character"),
    (b'{"text": Infinity}', "the line is not JSON (unexpected character"),
    (b'{"text": -Infinity}', "the line is not JSON (no digit after sign"),
    (b'{"text": 1e999}', "the line is not JSON (number is infinity"),
    (b'{"text": "\xff"}', "the line is not UTF-8 (invalid start byte, at byte 11"),
    (b'{"text": "\xed\xa0\x80"}', "the line is not UTF-8 (invalid continuation byte, at byte 11"),
    (b'{"text": "\\ud800"}', "the line is not JSON (no low surrogate in string"),
    (b'{"text": "\\ud800\\u0041"}', "the line is not JSON (invalid low surrogate in string"),
    (b'{"text": "\\udc00"}', "the line is not JSON (invalid high surrogate in string"),
    (b'{"text": "\x00"}', "the line is not JSON (unexpected control character in string, at character 11"),
    (b"\x00", "the line is not JSON (unexpected character"),
    (b'{"text": ""}', 'field "text" is empty'),
    (b'{"text": 3}', 'field "text" is a number, not a string'),
    (b'{"text": "a"} {}', "the line is not JSON (unexpected content after document"),
    (b"\xef\xbb\xbf{}", "the line is not JSON (UTF-8 byte order mark (BOM) is not supported"),
    (b"[" * 100_000, "the line is not JSON (depth limit exceeded"),
    (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "the line is not JSON (depth limit exceeded"),
    (b'{"text": "a", "note": ' + b'{"a":' * 100_000, "the line is not JSON (depth limit exceeded"),
]
ALPACA = {"instruction": "Sort.", "input": "2 1", "output": "1 2"}
BAD_PAIRS = [
    ("prompt/answer", {"prompt": "q"}, 'field "answer" is missing', 'the record has "prompt"'),
    ("prompt/answer", {"answer": "a", "Prompt": "q"}, 'field "prompt" is missing', 'the record has "answer", "Prompt"'),
    ("prompt/answer", {"prompt": "q", "answer": ""}, 'field "answer" is empty', None),
    ("prompt/answer", {"prompt": None, "answer": "a"}, 'field "prompt" is null, not a string', None),
    ("prompt/answer", {"prompt": [HUMAN], "answer": "a"}, 'field "prompt" is a list, not a string', None),
    ("query/output", {"query": "q", "output": {}}, 'field "output" is an object, not a string', None),
    ("prompt/answer", {"prompt": "q", "answer": "a", "system": 3}, 'field "system" is a number, not a string', None),
    ("instruction/output", ALPACA | {"input": ["2"]}, 'field "input" is a list, not a string', None),
    (
        "input/output",
        ALPACA,
        'the record has an "instruction", which the shape input/output would leave out',
        "choose instruction/output with --format",
    ),
    (
        "prompt/answer",
        {"prompt": "\ufdd0", "answer": "a"},
        'field "prompt" holds the noncharacter U+FDD0, which is reserved',
        None,
    ),
]


@pytest.mark.parametrize(("rounds", "reason"), BAD_ROUNDS)
def test_bad_rounds_are_refused_with_their_reason(rounds, reason):
    with pytest.raises(RecordError) as raised:
        parse_conversations({"chat_rounds": rounds}, "chat_rounds")
    assert raised.value.reason == reason


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_bad_lines_are_refused_with_their_reason(line, reason):
    with pytest.raises(RecordError) as raised:
        parse_line(line, None)
    assert raised.value.reason.startswith(reason)
    assert "\n" not in raised.value.reason


@pytest.mark.parametrize(("record_format", "record", "reason", "fix"), BAD_PAIRS)
def test_bad_pairs_are_refused_with_the_field_at_fault(record_format, record, reason, fix):
    with pytest.raises(RecordError) as raised:
        parse_conversations(record, record_format)
    assert (raised.value.reason, raised.value.fix) == (reason, fix)


field_names = [
    "role",
    "content",
    "chosen",
    "rejected",
    "train",
    "chat_rounds",
    "messages",
    "text",
    "system",
    *QUESTION_FIELDS,
    *ANSWER_FIELDS,
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(field_names), inner),
    max_leaves=12,
)


@given(json_values)
def test_no_json_raises_anything_but_a_refusal(record):
    for record_format in RECORD_FORMATS:
        try:
            conversations = parse_conversations(record, record_format)
        except RecordError:
            continue
        for conversation in conversations:
            assert any(turn.is_supervised for turn in conversation)
            assert all(isinstance(turn.content, str) for turn in conversation)


@given(json_values)
def test_a_detected_shape_has_its_fields_in_the_record(record):
    try:
        record_format = detect_format(record)
    except RecordError:
        return
    assert set(record_format.split("/")) <= record.keys()


contents = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"))
filled = contents.filter(str.strip)


@given(st.sampled_from(QUESTION_FIELDS), st.sampled_from(ANSWER_FIELDS), contents, filled, st.none() | contents)
def test_a_pair_is_the_same_conversation_as_its_rounds(question_field, answer_field, question, answer, system):
    pair = {"id": 1, question_field: question, answer_field: answer, "system": system}
    rounds = [{"role": "human", "content": question}, {"role": "bot", "content": answer}]
    if system:
        rounds.insert(0, {"role": "system", "content": system})
    (same,) = parse_conversations({"chat_rounds": rounds}, "chat_rounds")
    assert parse_conversations(pair, detect_format(pair)) == (same,)
    del pair["system"]
    assert parse_conversations(pair, detect_format(pair)) == (same[-2:],)


@pytest.mark.parametrize(
    ("given_input", "question"),
    [({"input": "2 1"}, "Sort.\n\n2 1"), ({"input": ""}, "Sort."), ({"input": None}, "Sort."), ({}, "Sort.")],
)
def test_an_alpaca_instruction_is_never_lost(given_input, question):
    record = {"instruction": "Sort.", "output": "1 2", **given_input}
    assert detect_format(record) == "instruction/output"
    assert parse_line(orjson.dumps(record), None).conversation == (
        Turn("human", question, False),
        Turn("bot", "1 2", True),
    )


@pytest.mark.parametrize(
    ("record", "shapes"),
    [
        (ALPACA | {"text": "t"}, "text, instruction/output"),
        ({"chat_rounds": [], "messages": []}, "chat_rounds, messages"),
        ({"prompt": "p", "input": "i", "output": "o"}, "prompt/output, input/output"),
        ({"question": "q", "answer": "a", "response": "r"}, "question/response, question/answer"),
    ],
)
def test_a_record_of_several_shapes_is_refused_until_one_is_chosen(record, shapes):
    with pytest.raises(RecordError) as raised:
        detect_format(record)
    assert raised.value.reason == f"the record has the fields of several shapes ({shapes})"
    assert raised.value.fix == "choose one with --format"


def test_a_field_without_its_partner_makes_no_shape():
    assert detect_format({"prompt": "p", "messages": []}) == "messages"
    with pytest.raises(RecordError, match='no known shape fits: the record has "prompt", "instruction"'):
        detect_format({"prompt": "p", "instruction": "i"})


def test_a_refusal_names_at_most_eight_fields_each_on_one_line():
    with pytest.raises(RecordError) as raised:
        detect_format({"a\nb": 1, "c" * 50: 2} | dict.fromkeys("defghijk"))
    shown = f"""'a\\nb', "{"c" * 40}...", "d", "e", "f", "g", "h", "i" and 2 more"""
    assert raised.value.reason == f"no known shape fits: the record has {shown}"


def test_format_takes_exactly_the_known_shapes():
    assert parse_record_format(None, None, "auto") is None
    for record_format in RECORD_FORMATS:
        assert parse_record_format(None, None, record_format) == record_format
    with pytest.raises(click.BadParameter) as raised:
        parse_record_format(None, None, "sharegpt")
    assert raised.value.message == f"'sharegpt' is not one of auto, {', '.join(RECORD_FORMATS)}"


def test_the_shapes_load_no_heavy_library():
    code = "import sys, mft_data.reading.shapes; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "transformers", "tokenizers", "streaming", "torch"} & set(loaded)


def test_roles_and_train_flags_are_read_as_they_are():
    rounds = [SYSTEM, {"role": "user", "content": ""}, SILENT, HUMAN, {"role": "assistant", "content": " b\u00a0\n"}]
    (conversation,) = parse_conversations({"messages": rounds}, "messages")
    assert conversation == (
        Turn("system", "s", False),
        Turn("human", "", False),
        Turn("bot", "b", False),
        Turn("human", "h", False),
        Turn("bot", " b\u00a0\n", True),
    )


def test_a_nul_character_is_text_like_any_other():
    record = parse_json(b'{"text": "a\\u0000b"}')
    assert parse_conversations(record, "text") == ((Turn("text", "a\0b", True),),)


def test_an_unknown_role_names_the_nearest_valid_one():
    with pytest.raises(RecordError) as raised:
        parse_conversations({"chat_rounds": [{"role": "Assitant", "content": "x"}]}, "chat_rounds")
    assert (
        raised.value.fix
        == 'write "assistant" (the roles are system, developer, human, user, bot, assistant, gpt, tool)'
    )


def test_the_first_recognised_record_decides_for_its_file(write_task):
    good = {"messages": [HUMAN, BOT]}
    (file,) = find_files((write_task("t", [{"x": 1}, good, b" ", {"chat_rounds": [HUMAN, BOT]}, good]),))
    assert file_format(file.path, {}) == "messages"
    with pytest.raises(RecordError) as raised:
        parse_line(orjson.dumps({"chat_rounds": [HUMAN, BOT]}), "messages")
    assert (raised.value.reason, raised.value.fix) == ('field "messages" is missing', 'the record has "chat_rounds"')


def test_lines_of_white_space_are_no_records_but_count_as_lines(write_task):
    (file,) = find_files((write_task("t", [b"", b"  ", b'{"text": "a"}', b"\t\r", b'{"text": "b"}', b" \x0b\x0c"]),))
    assert [(number, parse_line(line, "text").conversation[0].content) for number, line in read_lines(file.path)] == [
        (3, "a"),
        (5, "b"),
    ]


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
