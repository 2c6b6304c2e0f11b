"""Records as the datasets that people have publish them, and what a record has beside its conversation."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_data.errors import RecordError
from mft_data.reading.conversation import Turn
from mft_data.reading.records import num_colons, num_members, parse_json, parse_line
from mft_data.reading.source_settings import SourceSettings

SYSTEM, QUESTION, ANSWER = Turn("system", "S", False), Turn("human", "Q", False), Turn("bot", "A", True)
DOLLY = {"instruction": "When?", "context": "In 2023.", "response": "2023", "category": "closed_qa"}
OPEN_ORCA = {"id": "flan.1", "system_prompt": "S", "question": "Q", "response": "A"}
OSS_INSTRUCT = {"lang": "python", "raw_index": 1, "index": 2, "seed": "x = 1", "problem": "Q", "solution": "A"}
SHARE_GPT = {"id": "i", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
LLAMA_FACTORY = {"instruction": "Q", "input": "", "output": "A", "system": "S", "history": [["q", "a"]]}
OPEN_AI = {
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "S"}]},
        {"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "B", "weight": 0},
        {"role": "user", "content": "Q", "name": "Ann"},
        {"role": "assistant", "content": "A", "weight": 1},
    ],
    "tools": [],
}
# Of TRL and of LLaMA-Factory: answers that were judged one by one.
KTO = {"prompt": "Q", "completion": "A", "label": True}
KTO_ROUNDS = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "label": True}
NOT_LEARNED = 'field "label" is false, which says that the answer is a bad one'
RECORDS = [
    (DOLLY, (Turn("human", "When?\n\nIn 2023.", False), Turn("bot", "2023", True)), ["category"]),
    (OPEN_ORCA, (SYSTEM, QUESTION, ANSWER), []),
    (OSS_INSTRUCT, (QUESTION, ANSWER), ["lang", "raw_index", "index", "seed"]),
    (SHARE_GPT, (QUESTION, ANSWER), []),
    ({**SHARE_GPT, "system": "S"}, (SYSTEM, QUESTION, ANSWER), []),
    (LLAMA_FACTORY, (SYSTEM, Turn("human", "q", False), Turn("bot", "a", True), QUESTION, ANSWER), []),
    (OPEN_AI, (SYSTEM, Turn("human", "Q?", False), Turn("bot", "B", False), QUESTION, ANSWER), ["messages.name"]),
    ({"prompt": "Q", "response": "A", "rejected": "B"}, (QUESTION, ANSWER), ["rejected"]),
    (KTO, (QUESTION, ANSWER), []),
    (KTO_ROUNDS, (QUESTION, ANSWER), []),
    ({**KTO, "label": 0}, (QUESTION, ANSWER), ["label"]),
    ({"text": "T", "label": False}, (Turn("text", "T", True),), ["label"]),
    ({"text": "T", "meta": {"url": "x"}, "score": 0, "note": ""}, (Turn("text", "T", True),), ["meta", "score"]),
]
BAD = [
    ({**KTO, "label": False}, NOT_LEARNED),
    ({**KTO_ROUNDS, "label": False}, NOT_LEARNED),
    ({"prompt": "Q", "response": " \n"}, 'field "response" is blank'),
    ({"text": "\t"}, 'field "text" is blank'),
    ({**OPEN_ORCA, "system": "T"}, "the fields system and system_prompt say different things"),
    ({**LLAMA_FACTORY, "history": "q"}, 'field "history" is a string, not a list'),
    ({**LLAMA_FACTORY, "history": [["q"]]}, "entry 1 of the history is not a pair of question and answer"),
    ({**LLAMA_FACTORY, "history": [["q", "a"], ["q", None]]}, 'field "answer" of entry 2 of the history is null'),
    ({**LLAMA_FACTORY, "history": [["q", " "]]}, "entry 1 of the history has no answer"),
    ({**DOLLY, "context": ["a"]}, 'field "context" is a list, not a string'),
    ({**SHARE_GPT, "conversations": [{"from": "human", "value": 3}]}, 'field "value" of round 1 is a number'),
    (
        {"messages": [{"role": "system", "content": "T"}, *OPEN_AI["messages"][1:]], "system": "S"},
        'the record has a system turn, and a field "system"',
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "Q"},
                {"role": "assistant", "content": None, "reasoning_content": "r"},
            ]
        },
        'field "content" of round 2 is null, not a string',
    ),
]


@pytest.mark.parametrize(("record", "conversation", "unused"), RECORDS)
def test_records_as_their_datasets_publish_them(record, conversation, unused):
    parsed = parse_line(orjson.dumps(record), None)
    assert parsed.conversation == conversation
    assert parsed.unused_fields == unused


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_what_cannot_be_used_is_refused_by_name(record, reason):
    with pytest.raises(RecordError) as error:
        parse_line(orjson.dumps(record), None)
    assert error.value.reason.startswith(reason)


def test_a_field_can_be_read_as_the_label_of_an_answer_or_a_label_as_no_such_thing():
    line = orjson.dumps({**KTO, "label": False, "good": True})
    fields = {"label": "data_name"}
    assert parse_line(line, None, SourceSettings(fields=fields)).unused_fields == ["good"]
    assert parse_line(line, None, SourceSettings(fields={"good": "label"})).unused_fields == ["(label)"]
    with pytest.raises(RecordError, match=NOT_LEARNED):
        parse_line(orjson.dumps({**KTO, "good": False}), None, SourceSettings(fields={"good": "label"}))


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "a", "text": "b"}',
        b'{"text": "a", "text" : "b"}',
        b'{"text":"a","meta":{"k":1,"k":2}}',
        b'{"text":"a","meta":[[{"\\\\":1,"\\\\":2}]]}',
        b'{"text":"a","t\\u0065xt":"b"}',
        b'{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}',
    ],
)
def test_a_key_that_comes_twice_is_refused(line):
    with pytest.raises(RecordError, match="comes twice in an object"):
        parse_json(line)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(['":', '\\":', " :", '"', "\\", '\\\\":', '" :']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", '"', "\\", ":", 'b":', "c\\"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(json_values)
def test_an_object_without_repeats_is_read_as_it_is(value):
    line = orjson.dumps({"value": value})
    assert parse_json(line) == {"value": value}
    assert num_colons(line) == -1 or num_colons(line) >= num_members({"value": value})


def test_a_line_that_is_nested_too_deeply_to_be_checked_is_refused():
    line = b'{"text" : ' + b"[" * 1010 + b'"x"' + b"]" * 1010 + b"}"
    with pytest.raises(RecordError, match="the line is nested too deeply"):
        parse_json(line)
