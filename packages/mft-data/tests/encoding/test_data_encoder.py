"""The laws of encoding, over tokenizers of every family and conversations of every shape."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mft_data.encoding.encoder import make_encoder
from mft_data.encoding.template import OWN_TEMPLATES, mft_template
from mft_data.encoding.tokenizer import load_tokenizer, tokenizer_config
from mft_data.errors import DataError
from mft_data.reading.conversation import Turn

pytestmark = pytest.mark.whole

SPECIAL_LOOKALIKES = (
    "<|im_end|>",
    "<|im_end|>x",
    "<|endoftext|>",
    "<|im_start|>",
    "<|begin|>",
    "</s>",
    "<s>",
    "<unk>",
    "<s>bot\n",
    "\ufdd1",
)
FRAGMENTS = (
    "def add(a, b):\n",
    "    return a + b",
    " ",
    "\n",
    "\u00a0",
    "\r\n",
    "\x00",
    "é",
    "e\u0301",
    "🙂",
    "<think>",
    "▁",
)

plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), max_size=12)
plain_contents = st.lists(st.sampled_from(FRAGMENTS) | plain_text, max_size=5).map("".join)
contents = st.lists(st.sampled_from(FRAGMENTS + SPECIAL_LOOKALIKES) | plain_text, max_size=5).map("".join)
# Long enough for a law, short enough for many examples.
laws = settings(max_examples=60)


@st.composite
def conversations(draw, content=contents):
    """An optional system turn, then one to three exchanges, of which at least one is supervised."""
    turns = [Turn("system", draw(content), False)] if draw(st.booleans()) else []
    supervised = draw(st.lists(st.booleans(), min_size=1, max_size=3).filter(any))
    for is_supervised in supervised:
        turns.append(Turn("human", draw(content), False))
        turns.append(Turn("bot", draw(content.filter(bool)), is_supervised))
    return tuple(turns)


def encode(encoder, conversation):
    """Ids and mask of one conversation, as lists."""
    batch = encoder.encode_batch([conversation])
    return batch.input_ids.tolist(), batch.loss_mask.tolist()


def spans(ids, mask):
    """The runs of supervised ids, cut after each EOS by nothing but the mask."""
    borders = np.flatnonzero(np.diff([0, *mask, 0]))
    return [ids[begin:end] for begin, end in zip(borders[::2], borders[1::2], strict=True)]


def as_messages(turns):
    """The turns as a client sends them."""
    roles = {"human": "user", "bot": "assistant"}
    return [{"role": roles.get(turn.role, turn.role), "content": turn.content} for turn in turns]


def as_decoded(family, text):
    """What a decoder can give back of a text: for Metaspace its mark and a space are one."""
    return text.replace("▁", " ") if family.name == "llama_metaspace" else text


def answer_of(family, content):
    """What the model learns to write of a bot turn's content."""
    if family.template.name == "mftcoder":
        content = content.replace("\u202f", " ").replace("\u00a0", " ") + "\n"
    return content + family.template.eos


@laws
@given(conversation=conversations(plain_contents))
def test_ids_before_the_first_supervised_token_are_the_prompt_of_any_client(family, conversation):
    assume(not any(text in turn.content for turn in conversation for text in family.special_texts))
    ids, mask = encode(family.encoder, conversation)
    first_supervised = next(position for position, turn in enumerate(conversation) if turn.is_supervised)
    prompt = family.tokenizer.apply_chat_template(
        as_messages(conversation[:first_supervised]), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert ids[: mask.index(1)] == prompt


@laws
@given(conversation=conversations(), other_answer=contents.filter(bool))
def test_ids_before_every_span_do_not_depend_on_its_answer(family, conversation, other_answer):
    ids, mask = encode(family.encoder, conversation)
    assume(conversation[-1].is_supervised)
    other = (*conversation[:-1], Turn("bot", other_answer, True))
    other_ids, other_mask = encode(family.encoder, other)
    begin, other_begin = (np.flatnonzero(np.diff([0, *flags]) == 1)[-1] for flags in (mask, other_mask))
    assert ids[:begin] == other_ids[:other_begin]


@laws
@given(conversation=conversations(plain_contents))
def test_ids_before_every_span_decode_to_the_rendered_prompt(exact_family, conversation):
    ids, mask = encode(exact_family.encoder, conversation)
    starts = np.flatnonzero(np.diff([0, *mask]) == 1)
    bots = [position for position, turn in enumerate(conversation) if turn.is_supervised]
    for start, position in zip(starts, bots, strict=True):
        rendered = exact_family.tokenizer.apply_chat_template(
            as_messages(conversation[:position]), add_generation_prompt=True, tokenize=False
        )
        decoded = exact_family.tokenizer.backend_tokenizer.decode(ids[:start], skip_special_tokens=False)
        assert decoded == as_decoded(exact_family, rendered)


@laws
@given(conversation=conversations())
def test_content_never_yields_a_special_token(family, conversation):
    ids, _ = encode(family.encoder, conversation)
    harmless = tuple(Turn(turn.role, "x", turn.is_supervised) for turn in conversation)
    expected, _ = encode(family.encoder, harmless)
    unknown = family.tokenizer.convert_tokens_to_ids("<unk>") if "<unk>" in family.special_texts else None
    special_ids = family.special_ids - {unknown}
    assert [token for token in ids if token in special_ids] == [token for token in expected if token in special_ids]


@laws
@given(conversation=conversations())
def test_every_span_is_one_bot_turn_and_ends_with_eos(family, conversation):
    ids, mask = encode(family.encoder, conversation)
    found = spans(ids, mask)
    assert len(found) == sum(turn.is_supervised for turn in conversation)
    for span in found:
        assert span[-1] == family.tokenizer.eos_token_id
        assert span.count(family.tokenizer.eos_token_id) == 1


@laws
@given(conversation=conversations())
def test_spans_decode_to_the_exact_answers(exact_family, conversation):
    ids, mask = encode(exact_family.encoder, conversation)
    decode = exact_family.tokenizer.backend_tokenizer.decode
    answers = [answer_of(exact_family, turn.content) for turn in conversation if turn.is_supervised]
    # A token before the span keeps the decoder from taking the first space of the answer for its own.
    before = ids[0]
    shown = [decode([before, *span], skip_special_tokens=False) for span in spans(ids, mask)]
    prefix = decode([before, before], skip_special_tokens=False)[: len(decode([before], skip_special_tokens=False))]
    assert shown == [prefix + as_decoded(exact_family, answer) for answer in answers]


@laws
@given(conversation=conversations())
def test_decoded_conversation_is_the_rendered_text(exact_family, conversation):
    ids, _ = encode(exact_family.encoder, conversation)
    rendered = exact_family.tokenizer.apply_chat_template(as_messages(conversation), tokenize=False)
    decoded = exact_family.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    assert decoded == as_decoded(exact_family, rendered)
    assert rendered == "".join(stretch.text for stretch in exact_family.template.stretches(conversation))


@laws
@given(batch=st.lists(conversations(), min_size=1, max_size=6))
def test_a_batch_is_its_conversations_end_to_end(family, batch):
    together = family.encoder.encode_batch(batch)
    alone = [encode(family.encoder, conversation) for conversation in batch]
    assert together.lengths.tolist() == [len(ids) for ids, _ in alone]
    assert together.input_ids.tolist() == [token for ids, _ in alone for token in ids]
    assert together.loss_mask.tolist() == [flag for _, mask in alone for flag in mask]


@laws
@given(text=st.lists(st.sampled_from(FRAGMENTS) | plain_text, max_size=8).map("".join))
def test_text_without_special_tokens_has_the_ids_of_the_original_tokenizer(family, text):
    assume(not any(special in text for special in family.special_texts))
    expected = family.tokenizer.encode(text, add_special_tokens=False)
    assert family.encoder.prompt_tokenizer.encode(text, add_special_tokens=False).ids == expected


def test_renaming_keeps_every_id(family):
    before = family.tokenizer.get_vocab()
    after = family.encoder.prompt_tokenizer.get_vocab(with_added_tokens=True)
    assert {text: before[text] for text in before if text not in family.special_texts} == {
        text: token_id for text, token_id in after.items() if not text.startswith("\ufdd0")
    }
    assert {token_id for text, token_id in after.items() if text.startswith("\ufdd0")} == family.special_ids


def test_the_worked_example_by_hand(families):
    family = families["byte_level"]
    conversation = (Turn("system", "s", False), Turn("human", "h", False), Turn("bot", "b", True))
    vocab = family.tokenizer.get_vocab()
    ids, mask = encode(family.encoder, conversation)
    prompt = family.tokenizer.encode("<s>system\ns\n<s>human\nh\n<s>bot\n", add_special_tokens=False)
    (newline,) = family.tokenizer.encode("\n", add_special_tokens=False)
    assert ids == [*prompt, vocab["b"], vocab["<|im_end|>"], newline]
    assert mask == [0] * len(prompt) + [1, 1, 0]


@pytest.mark.parametrize(
    ("template", "text", "spans"),
    [
        (
            "mft",
            "<s>system\ns\u00a0\n<s>human\nh\n<s>bot\nb\u00a0<E>\n<s>human\nh\n<s>bot\nb<E>\n",
            ["b\u00a0<E>", "b<E>"],
        ),
        (
            "mftcoder",
            "<s>system\ns \n<s>human\nh\n<s>bot\nb \n<E>\n<s>human\nh\n<s>bot\nb\n<E>\n",
            ["b \n<E>", "b\n<E>"],
        ),
    ],
)
def test_the_exact_text_of_two_rounds_by_hand(families, template, text, spans):
    family = families["byte_level"]
    made = OWN_TEMPLATES[template]("<|im_end|>", {})
    rounds = (
        Turn("human", "h", False),
        Turn("bot", "b\u00a0", True),
        Turn("human", "h", False),
        Turn("bot", "b", True),
    )
    stretches = made.stretches((Turn("system", "s\u00a0", False), *rounds))
    assert "".join(stretch.text for stretch in stretches).replace("<|im_end|>", "<E>") == text
    assert [stretch.text.replace("<|im_end|>", "<E>") for stretch in stretches if stretch.is_supervised] == spans
    messages = as_messages((Turn("system", "s\u00a0", False), *rounds))
    rendered = family.tokenizer.apply_chat_template(messages, tokenize=False, chat_template=made.jinja())
    assert rendered.replace("<|im_end|>", "<E>") == text


def test_the_documents_of_mftcoder_end_with_a_newline_before_eos():
    document = (Turn("text", "x\u202fy", True),)
    assert [stretch.text for stretch in OWN_TEMPLATES["mftcoder"]("</s>", {}).stretches(document)] == ["x y\n</s>"]
    assert [stretch.text for stretch in OWN_TEMPLATES["mft"]("</s>", {}).stretches(document)] == ["x\u202fy</s>"]


def test_a_text_record_is_supervised_but_for_its_first_token(family):
    ids, mask = encode(family.encoder, (Turn("text", "def add(a, b):", True),))
    assert ids[-1] == family.tokenizer.eos_token_id
    assert mask == [0] + [1] * (len(ids) - 1)


def test_a_marker_that_is_a_special_token_is_emitted_as_its_id(families):
    llama = families["llama_metaspace"]
    ids, _ = encode(llama.encoder, (Turn("human", "<s>", False), Turn("bot", "x", True)))
    assert ids.count(llama.tokenizer.convert_tokens_to_ids("<s>")) == 2
    smol = families["byte_level"]
    template = mft_template("<|im_end|>", {"human": "<|im_start|>user\n", "bot": "<|im_start|>assistant\n"})
    encoder = make_encoder(tokenizer_config(smol.tokenizer), template)
    ids, _ = encode(encoder, (Turn("human", "<|im_start|>", False), Turn("bot", "x", True)))
    assert ids.count(smol.tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2


def test_the_longest_special_token_of_a_marker_wins(families):
    family = families["added_beyond_vocab"]
    template = mft_template("<|im_end|>", {"human": "<|im_end|>x"})
    encoder = make_encoder(tokenizer_config(family.tokenizer), template)
    ids, _ = encode(encoder, (Turn("human", "h", False), Turn("bot", "b", True)))
    assert ids[0] == family.tokenizer.convert_tokens_to_ids("<|im_end|>x")


def test_another_eos_token_becomes_special_everywhere(families, tmp_path):
    family = families["added_beyond_vocab"]
    tokenizer = load_tokenizer(family.tokenizer_dir, "<think>")
    encoder = make_encoder(tokenizer_config(tokenizer), mft_template("<think>", {}))
    ids, _ = encode(encoder, (Turn("human", "<think>", False), Turn("bot", "<think>", True)))
    assert ids.count(tokenizer.convert_tokens_to_ids("<think>")) == 1
    assert len(tokenizer) == len(family.tokenizer)


def test_an_eos_that_is_also_the_unknown_token_is_refused(families):
    config = tokenizer_config(families["unigram"].tokenizer)
    with pytest.raises(DataError, match='EOS "<unk>" is also the token for unknown text'):
        make_encoder(config, mft_template("<unk>", {}))


def test_a_tokenizer_whose_eos_is_not_found_after_text_is_refused(families):
    config = tokenizer_config(families["byte_level"].tokenizer)
    for token in config["added_tokens"]:
        token["single_word"] = True
    with pytest.raises(DataError, match="does not encode EOS"):
        make_encoder(config, mft_template("<|im_end|>", {}))


def test_a_tokenizer_that_reads_private_names_differently_is_refused(families):
    config = tokenizer_config(families["byte_level"].tokenizer)
    for token in config["added_tokens"]:
        token["normalized"] = True
    config["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[\ufdd0\ufdd1]"}, "content": ""}
    with pytest.raises(DataError, match="cannot tell special tokens from text"):
        make_encoder(config, mft_template("<|im_end|>", {"human": "<|im_start|>"}))
