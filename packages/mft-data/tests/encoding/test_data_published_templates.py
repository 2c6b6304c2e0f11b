"""Chat templates as their models publish them, Qwen's above all, where a library that is here carries them."""

import importlib.util
from pathlib import Path

import orjson
import pytest

from mft_data.errors import RecordError
from mft_data.reading.records import parse_line
from mft_data.reading.source_settings import SourceSettings

THOUGHT = "<think>\nthree, surely\n</think>\n\n3"
MESSAGES = [
    {"role": "user", "content": "Add 1 and 2."},
    {"role": "assistant", "content": THOUGHT},
    {"role": "user", "content": "Again."},
    {"role": "assistant", "content": THOUGHT},
]
# Those that leave out the reasoning of earlier turns, and those that render all turns alike.
DROPPING = ["qwen3", "qwen3_5_think", "qwen3_6"]
PLAIN = ["qwen2_5", "qwen3_instruct_2507"]


@pytest.fixture
def published(families, chosen):
    """The template of this name as a build has it, and the tokenizer."""

    def published(name):
        spec = importlib.util.find_spec("trl")
        path = Path(spec.origin).parent / "chat_templates" / f"{name}.jinja" if spec and spec.origin else None
        if path is None or not path.is_file():
            pytest.skip(f"no library here carries the chat template {name}")
        return chosen(families["byte_level"], path.read_text(encoding="utf-8"))

    return published


def conversation(train_on):
    """MESSAGES with these turns to learn."""
    return parse_line(orjson.dumps({"messages": MESSAGES}), "messages", SourceSettings(train_on=train_on)).conversation


def stretches(template, train_on):
    """What is not learned and what is, in turn."""
    return [(stretch.text, stretch.is_supervised) for stretch in template.stretches(conversation(train_on))]


@pytest.mark.parametrize("name", DROPPING)
def test_a_template_that_drops_earlier_reasoning_asks_for_the_last_turn(published, name):
    template, tokenizer = published(name)
    with pytest.raises(RecordError, match="differently than the whole conversation") as refusal:
        template.stretches(conversation("all"))
    assert "--train-on last" in refusal.value.fix
    prompt, answer = [text for text, _ in stretches(template, "last")][:2]
    assert prompt == tokenizer.apply_chat_template(MESSAGES[:-1], tokenize=False, add_generation_prompt=True)
    assert prompt + answer + "\n" == tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert answer.endswith("three, surely\n</think>\n\n3<|im_end|>")
    assert "surely" not in prompt


@pytest.mark.parametrize("name", PLAIN)
def test_every_turn_of_a_template_that_renders_all_alike_is_learned(published, name):
    template, tokenizer = published(name)
    found = stretches(template, "all")
    assert [text for text, is_supervised in found if is_supervised] == [f"{THOUGHT}<|im_end|>"] * 2
    assert "".join(text for text, _ in found) == tokenizer.apply_chat_template(MESSAGES, tokenize=False)
