"""Chosen and rejected answers: both in one row, told apart by a column, with the prompt of inference before each."""

import hashlib
import re

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming import LocalDataset, MDSWriter

from mft_data.dataset.mds import ShardWriter, mds_columns, with_extra
from mft_data.dataset.row_rules import broken_sides
from mft_data.dataset.shard_columns import Arrays
from mft_data.encoding.encoder import EncodedBatch
from mft_data.errors import RecordError
from mft_data.reading.conversation import Turn
from mft_data.reading.records import parse_line
from mft_data.reading.source_settings import SourceSettings
from mft_data.rows.rows import encode_rows

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B"))
)
SYSTEM = {"role": "system", "content": "S"}
HUMAN, SYSTEM_TURN, BETTER, WORSE = (
    Turn("human", "Q", False),
    Turn("system", "S", False),
    Turn("bot", "A", True),
    Turn("bot", "B", True),
)
SHORT = ((HUMAN, BETTER), (HUMAN, WORSE))
LONG = tuple((SYSTEM_TURN, *side) for side in SHORT)
FIRST = (Turn("human", "q", False), Turn("bot", "a", False))
# As the datasets publish them: fields and their types, with short texts.
RECORDS = {
    "ultrafeedback_binarized": (
        {
            "prompt": "Q",
            "prompt_id": "f0e3",
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
            "messages": [USER, GOOD],
            "score_chosen": 8.5,
            "score_rejected": 7.5,
        },
        SHORT,
        ["prompt_id", "messages", "score_chosen", "score_rejected"],
    ),
    "orca_dpo_pairs": ({"system": "S", "question": "Q", "chosen": "A", "rejected": "B"}, LONG, []),
    "orca_dpo_pairs_without_system": ({"system": "", "question": "Q", "chosen": "A", "rejected": "B"}, SHORT, []),
    "distilabel": ({"system": "S", "input": "Q", "chosen": "A", "rejected": "B", "status": "tie"}, LONG, ["status"]),
    "hh_rlhf": (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: Q\n\nAssistant: A",
            "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: Q\n\nAssistant: B",
        },
        tuple((*FIRST, *side) for side in SHORT),
        [],
    ),
    "full_hh_rlhf": ({"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": "A", "rejected": "B"}, SHORT, []),
    "trl_standard": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, SHORT, []),
    "trl_conversational": ({"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]}, LONG, []),
    "trl_implicit": ({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, LONG, []),
    "llama_factory": (
        {
            "conversations": [{"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "A"},
            "rejected": {"from": "gpt", "value": "B"},
        },
        SHORT,
        [],
    ),
    "alpaca_like": (
        {"instruction": "Q", "input": "", "chosen": "A", "rejected": "B", "history": [["q", "a"]]},
        tuple((*FIRST, *side) for side in SHORT),
        [],
    ),
    "more_turns_after_the_prompt": (
        {"chosen": [USER, GOOD, USER, BAD], "rejected": [USER, BAD]},
        ((HUMAN, BETTER, HUMAN, WORSE), (HUMAN, WORSE)),
        [],
    ),
}


@pytest.mark.parametrize(("record", "sides", "unused"), RECORDS.values(), ids=RECORDS)
def test_pairs_as_their_datasets_publish_them(record, sides, unused):
    parsed = parse_line(orjson.dumps(record), None)
    assert parsed.conversations == sides
    assert parsed.unused_fields == unused
    assert parsed.prompt == sides[0][: -1 if len(sides[0]) == len(sides[1]) else 1]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "chosen and rejected say the same"),
        ({"prompt": "Q", "chosen": "A", "rejected": " "}, 'field "rejected" is blank'),
        ({"prompt": "Q", "chosen": "A", "rejected": None}, 'field "rejected" is null'),
        ({"prompt": "Q", "chosen": "A", "rejected": []}, 'field "rejected" is empty'),
        ({"prompt": "Q", "chosen": 3, "rejected": "B"}, 'field "chosen" is a number, neither a string nor a list'),
        ({"chosen": "A", "rejected": "B"}, "no field has their prompt"),
        (
            {"question": "Q", "problem": "q", "chosen": "A", "rejected": "B"},
            "answers to one of the fields question, problem",
        ),
        ({"chosen": [USER, GOOD], "rejected": [{**USER, "content": "q"}, BAD]}, "answer different prompts"),
        ({"chosen": [USER, GOOD, USER, BAD], "rejected": [USER, GOOD]}, "rejected is only the beginning of the other"),
        ({"chosen": [USER, GOOD, USER], "rejected": [USER, BAD]}, "the last round is a human turn without an answer"),
        ({"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "round 3 is a bot turn where a human turn"),
        ({"chosen": [USER, {**GOOD, "train": False}], "rejected": [USER, BAD]}, "leaves nothing to learn"),
        ({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD], "system": "T"}, "has a system turn, and a"),
    ],
)
def test_what_is_no_pair_is_refused(record, reason):
    with pytest.raises(RecordError, match=re.escape(reason)):
        parse_line(orjson.dumps(record), None)


def test_pairs_of_openai_are_read_with_their_fields_named():
    record = {"input": {"messages": [SYSTEM, USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
    fields = {"input": "prompt", "preferred_output": "chosen", "non_preferred_output": "rejected"}
    parsed = parse_line(orjson.dumps(record), None, SourceSettings(fields=fields))
    assert (parsed.conversations, parsed.unused_fields) == (LONG, [])


def test_a_shape_or_the_last_turn_can_be_asked_for():
    record, _, _ = RECORDS["ultrafeedback_binarized"]
    parsed = parse_line(orjson.dumps(record), "messages")
    assert parsed.conversations == (SHORT[0],)
    assert {"chosen", "rejected"} < set(parsed.unused_fields)
    record = {"question": "Q", "problem": "q", "chosen": "A", "rejected": "B"}
    parsed = parse_line(orjson.dumps(record), None, SourceSettings(fields={"question": "prompt"}))
    assert parsed.conversations == SHORT
    assert parsed.unused_fields == ["problem"]
    record, (chosen, rejected), _ = RECORDS["more_turns_after_the_prompt"]
    parsed = parse_line(orjson.dumps(record), None, SourceSettings(train_on="last"))
    assert parsed.conversations == ((HUMAN, Turn("bot", "A", False), *chosen[2:]), rejected)
    assert parsed.prompt == (HUMAN,)


words = st.text(alphabet="ab\n é<|>", min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=60)
@given(st.lists(st.tuples(words, words), max_size=3), words, st.lists(words, min_size=2, max_size=2, unique=True))
def test_both_sides_have_the_ids_of_the_prompt_at_inference(family, rounds, question, answers):
    history = [
        {"role": role, "content": text}
        for pair in rounds
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    prompt = [*history, {"role": "user", "content": question}]
    record = {
        "prompt": prompt,
        **{
            side: [{"role": "assistant", "content": text}]
            for side, text in zip(("chosen", "rejected"), answers, strict=True)
        },
    }
    sides = [family.encoder.encode_batch([side]) for side in parse_line(orjson.dumps(record), None).conversations]
    rendered = family.encoder.template.stretches(
        (
            *(Turn("human" if turn["role"] == "user" else "bot", turn["content"], False) for turn in prompt),
            Turn("bot", "x", True),
        )
    )[0].text
    text = family.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    # mftcoder writes no-break spaces and an end of its own in earlier answers, as its template does.
    assert rendered == text
    firsts = [int(np.flatnonzero(side.loss_mask)[0]) for side in sides]
    prompts = [side.input_ids[:first].tolist() for side, first in zip(sides, firsts, strict=True)]
    assert prompts[0] == prompts[1]
    for side, first in zip(sides, firsts, strict=True):
        (last,) = np.flatnonzero(np.diff([*side.loss_mask, 0]) == -1)
        assert side.loss_mask[first : last + 1].all()
        assert side.input_ids[last] == family.tokenizer.eos_token_id


def pair(helpers, number):
    """Every third record is a conversation alone, the others are pairs; every fifth has a weight."""
    rounds = helpers.record(number)["chat_rounds"]
    weight = {"weight": 2.0} if number % 5 == 0 else {}
    if number % 3 == 0:
        return {
            "messages": [
                {"role": "user", "content": rounds[0]["content"]},
                {"role": "assistant", "content": rounds[1]["content"]},
            ],
            **weight,
        }
    return {"prompt": rounds[0]["content"], "chosen": rounds[1]["content"], "rejected": f"no {number}", **weight}


def found_pairs(dataset, task, tokenizer):
    """Number to (chosen, rejected) or (answer,) and the weights, as the streaming library reads them."""
    found = {}
    for split in ("train", "validation"):
        rows = LocalDataset(str(dataset / split / task))
        for row in (rows[position] for position in range(len(rows))):
            assert row["segment_sides"].dtype == np.uint8
            borders = np.cumsum(row["segment_lengths"])[:-1]
            texts = [tokenizer.decode(ids) for ids in np.split(row["input_ids"], borders)]
            entries = list(zip(row["segment_sides"].tolist(), row["segment_weights"].tolist(), texts, strict=True))
            while entries:
                side, weight, text = entries.pop(0)
                number = int(re.search(r"add (\d+)", text)[1])
                sides = [text]
                if side == 1:
                    other, other_weight, other_text = entries.pop(0)
                    assert (other, other_weight) == (2, weight)
                    sides.append(other_text)
                found[number] = sides, weight
    return found


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("fraction", ["0.1", "0.0001"])
def test_both_sides_lie_in_one_row(run, write_task, tmp_path, helpers, families, fraction):
    # With the smaller fraction one record is moved to validation at the end.
    records = [pair(helpers, number) for number in range(400)]
    for kind in (True, False):
        write_task("t", [record for record in records if ("chosen" in record) == kind], f"{kind}.jsonl")
    write_task("u", [helpers.record(1)])
    run("build", "t", "u", "out", "--validation", fraction, "--workers", "1")
    tokenizer = families["byte_level"].tokenizer
    found = found_pairs(tmp_path / "out", "t", tokenizer)
    assert found.keys() == set(range(400))
    for number, (sides, weight) in found.items():
        answer = helpers.record(number)["chat_rounds"][1]["content"]
        assert weight == (2.0 if number % 5 == 0 else 1.0)
        answers = [answer] if number % 3 == 0 else [answer, f"no {number}"]
        assert [side.split("<s>bot\n")[1] for side in sides] == [f"{text}<|im_end|>\n" for text in answers]
    manifest = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert (manifest["format_version"], manifest["features"]) == ("2", ["segment_sides", "segment_weights"])
    counts = manifest["tasks"][0]["splits"]
    assert sum(counts[split]["pairs"] for split in counts) == sum(number % 3 > 0 for number in range(400))
    assert sum(counts[split]["conversations"] for split in counts) == 400
    assert counts["validation"]["conversations"] > 0
    run("verify", "out")
    run("inspect", "out")
    shown = [run("inspect", "out", "--task", "t", "--row", row).stdout for row in range(0, counts["train"]["rows"], 20)]
    assert all(text.count("── chosen, segment ") == text.count("── rejected, segment ") for text in shown)
    assert any("── chosen, segment " in text for text in shown)
    for part in (1, 2):
        run("build", "t", "u", f"part{part}", "--validation", fraction, "--part", f"{part}/2")
    run("join", "part1", "part2", "joined")
    assert helpers.tree(tmp_path / "joined") == helpers.tree(tmp_path / "out")


@pytest.mark.parametrize("overlong", ["drop", "truncate", "error"])
def test_a_pair_that_no_row_holds_is_dropped_whole(run, write_task, tmp_path, overlong):
    record = {"prompt": "Q", "chosen": "a b " * 40, "rejected": "b a " * 40}
    write_task("t", [record, {"prompt": "Q", "chosen": "a", "rejected": "b"}, record | {"rejected": "b a " * 40_000}])
    if overlong == "error":
        assert "the conversation has" in run("build", "t", "out", "--overlong", overlong, exit_code=1).stderr
        return
    run("build", "t", "out", "--overlong", overlong, "--validation", "0")
    (task,) = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())["tasks"]
    assert (task["conversations"]["overlong_dropped"], task["splits"]["train"]["pairs"]) == (2, 1)
    run("verify", "out")


def test_answers_to_one_prompt_stay_on_one_side_and_repeats_are_dropped(run, write_task, tmp_path, families):
    records = [
        {"prompt": f"add {number}", "chosen": f"{copy} yes", "rejected": "no"}
        for number in range(40)
        for copy in range(3)
    ]
    write_task("t", [*records, records[0]])
    (tmp_path / "tasks.yaml").write_text("tasks: {t: {paths: t, validation: 0.3, validation_group: (prompt)}}")
    run("build", "tasks.yaml", "out", "--dedup", "exact")
    (task,) = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())["tasks"]
    assert task["conversations"]["duplicates"] == 1
    sides = []
    for split in ("train", "validation"):
        rows = LocalDataset(str(tmp_path / "out" / split / "t"))
        text = "".join(
            families["byte_level"].tokenizer.decode(rows[number]["input_ids"]) for number in range(len(rows))
        )
        sides.append(set(re.findall(r"add (\d+)\n", text)))
    assert not sides[0] & sides[1]
    assert len(sides[1]) > 2


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=5))
def test_a_side_without_its_other_one_is_found(rows):
    flat = np.array([value for row in rows for value in row], np.uint8)
    arrays = Arrays(flat, np.cumsum([0, *map(len, rows)]))
    broken = {row for _, found in broken_sides(arrays, arrays) for row in found.tolist()}
    assert broken == {n for n, row in enumerate(rows) if re.sub("0|12", "", "".join(map(str, row)))}


def test_preview_shows_both_sides(run, write_task, tokenizer_dir):
    write_task("t", [{"prompt": "Q", "chosen": "A", "rejected": "B"}])
    shown = run("preview", "t", "--tokenizer", tokenizer_dir).stdout
    assert "t/part.jsonl line 1, chosen: " in shown
    assert "t/part.jsonl line 1, rejected: " in shown


def test_every_byte_of_a_stream_of_pairs_is_what_the_streaming_library_writes(tmp_path, helpers):
    lengths = np.array([3, 4, 5, 2])
    ids = np.arange(lengths.sum(), dtype=np.uint16)
    extra = [np.array(values, dtype) for values, dtype in (([1, 2, 1, 2], np.uint8), ([1, 1, 0.5, 0.5], np.float32))]
    columns = mds_columns("uint16", ["segment_sides", "segment_weights"])
    writer = ShardWriter(tmp_path / "ours", columns)
    (sample,) = encode_rows(EncodedBatch(ids, (ids % 2).astype(np.uint8), lengths), [[0, 1, 2, 3]], 3)
    writer.write(with_extra(sample, extra))
    writer.finish()
    with MDSWriter(columns=columns, out=str(tmp_path / "theirs"), hashes=["sha256"]) as theirs:
        row = {"input_ids": ids, "loss_mask": (ids % 2).astype(np.uint8), "segment_lengths": lengths.astype(np.uint32)}
        theirs.write({**row, "segment_sides": extra[0], "segment_weights": extra[1], "task_id": 3})
    ours = helpers.tree(tmp_path / "ours")
    assert ours == helpers.tree(tmp_path / "theirs")
    assert {name: hashlib.sha256(content).hexdigest() for name, content in ours.items()} == FROZEN_STREAM


# A changed digest is a changed format: readers of older datasets need to know.
FROZEN_STREAM = {
    "index.json": "be781fabc6e23699ff25cd6be7ceb41814c067626f007bd9b6edb345ae7890b3",
    "shard.00000.mds": "b8b907a9007611abdfa4cb79cc657e2eae3c5a457fc3ee97ff6ebdd7a5da094d",
}
