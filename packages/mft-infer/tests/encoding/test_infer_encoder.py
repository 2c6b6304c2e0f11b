"""The laws at inference: special tokens come from the template alone, all else is as any client encodes it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mft_infer.encoding.chat_template import Conversation
from mft_infer.encoding.prompt_encoder import PromptEncoder
from mft_infer.errors import PromptError

SPECIALS = ("<|end|>", "<|turn|>")
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd2"), max_size=12)
contents = st.lists(st.sampled_from((*SPECIALS, "<|", "end|>", "<s>bot\n", " ", "\n")) | plain, max_size=5).map("".join)
laws = settings(max_examples=60, deadline=None)
TOOLS = [{"type": "function", "function": {"name": "look", "description": "<|end|> ends"}}]


@pytest.fixture(scope="module")
def encoder(tokenizer) -> PromptEncoder:
    return PromptEncoder(tokenizer, "tokenizer")


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def is_harmless(text: str) -> bool:
    return not any(special in text for special in SPECIALS)


@laws
@given(contents)
def test_no_raw_prompt_holds_a_special_token(encoder, tokenizer, text):
    ids = encoder.encode_text(text)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text
    if is_harmless(text):
        assert ids == tokenizer.encode(text)


@laws
@given(st.lists(contents.filter(str.strip), min_size=1, max_size=5))
def test_only_the_template_writes_special_tokens(encoder, tokenizer, turns):
    """One EOS for each answer of the history, whatever the contents say; the text is the template's."""
    roles = ["user", "assistant"]
    messages = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
    ids = encoder.encode_conversation(Conversation(messages))
    specials = [token_id for token_id in ids if token_id in tokenizer.all_special_ids]
    assert specials == [tokenizer.eos_token_id] * (len(turns) // 2)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    if len(turns) == 1 and is_harmless(turns[0]):
        assert ids == tokenizer.encode(text, add_special_tokens=False)


@laws
@given(contents.filter(str.strip))
def test_an_answer_in_the_history_has_the_ids_that_it_had_as_an_answer(encoder, tokenizer, answer):
    """The prompt of the next turn begins with the prompt of this one, the answer's own ids and EOS."""
    before = encoder.encode_conversation(Conversation(user("x")))
    messages = [*user("x"), {"role": "assistant", "content": answer}, *user("y")]
    after = encoder.encode_conversation(Conversation(messages))
    assert after[: len(before)] == before
    rest = after[len(before) :]
    assert rest[: rest.index(tokenizer.eos_token_id)] == encoder.encode_text(answer)


def test_marked_raw_prompts_hold_special_tokens(encoder, tokenizer):
    assert encoder.encode_marked_text("a<|end|>") == [*tokenizer.encode("a"), tokenizer.eos_token_id]


def with_template(tokenizer, template: str) -> PromptEncoder:
    copy = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    copy.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    copy.chat_template = template
    return PromptEncoder(copy, "tokenizer")


def test_tools_and_arguments_reach_the_template_as_text(tokenizer):
    encoder = with_template(tokenizer, "{{ tools[0] | tojson }}{{ mood }}<|turn|>{{ messages[0].content }}")
    ids = encoder.encode_conversation(Conversation(user("hi"), TOOLS, {"mood": "<|end|>!"}))
    assert [token_id for token_id in ids if token_id in tokenizer.all_special_ids] == [
        tokenizer.convert_tokens_to_ids("<|turn|>")
    ]
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == json.dumps(TOOLS[0]) + "<|end|>!<|turn|>hi"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content | replace('<|turn|>', '-') }}{% endfor %}<|turn|>",
        "{% for m in messages %}{{ m.content | length }}{% endfor %}<|turn|>",
    ],
)
def test_a_template_that_looks_at_special_tokens_in_contents_is_refused(template, tokenizer):
    encoder = with_template(tokenizer, template)
    assert encoder.encode_conversation(Conversation(user("plain")))
    with pytest.raises(PromptError, match="in a way of its own"):
        encoder.encode_conversation(Conversation(user("a<|turn|>b")))


def test_a_template_that_rewrites_the_history_is_encoded_as_it_is(tokenizer):
    """Such a conversation has no prompt in training that it could be equal to."""
    encoder = with_template(
        tokenizer,
        "{% for m in messages %}{{ m.content if loop.last else m.content | upper }}<|turn|>{% endfor %}",
    )
    messages = [*user("ask"), {"role": "assistant", "content": "say"}, *user("more")]
    ids = encoder.encode_conversation(Conversation(messages))
    assert tokenizer.decode(ids, skip_special_tokens=False) == "ASK<|turn|>SAY<|turn|>more<|turn|>"


def test_stop_ids_are_the_tokens_after_an_answer(tokenizer):
    loop = "{% for m in messages %}{{ m.content }}<|turn|>\n{% endfor %}"
    two = loop + "{% if not add_generation_prompt %}<|end|>{% endif %}"
    both = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|turn|>")}
    assert with_template(tokenizer, two).stop_ids == both
    assert with_template(tokenizer, "{{ messages[-1].content }}").stop_ids == set()
    assert with_template(tokenizer, "{{ raise_exception('no') }}").stop_ids == set()


def test_a_tokenizer_that_cannot_keep_names_apart_refuses_special_tokens_in_prompts(tokenizer):
    config = json.loads(tokenizer.backend_tokenizer.to_str())
    config["added_tokens"] = [{**token, "normalized": True} for token in config["added_tokens"]]
    config["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[\ufdd0\ufdd1]"}, "content": ""}
    raw = Tokenizer.from_str(json.dumps(config))
    encoder = PromptEncoder(
        PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", chat_template=tokenizer.chat_template), "t"
    )
    assert encoder.encode_text("fox") == tokenizer.encode("fox")
    for encode in (encoder.encode_text, lambda text: encoder.encode_conversation(Conversation(user(text)))):
        with pytest.raises(PromptError, match=r"cannot tell .* in a prompt from the special token"):
            encode("a<|turn|>")
