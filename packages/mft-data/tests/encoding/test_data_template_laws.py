"""The laws of encoding for any chat template, over tokenizers of every family and conversations of every shape."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from mft_data.encoding.choose_template import choose_template
from mft_data.encoding.encoder import make_encoder
from mft_data.encoding.template import OWN_TEMPLATES
from mft_data.encoding.tokenizer import load_tokenizer, save_tokenizer, tokenizer_config
from mft_data.reading.conversation import Turn

pytestmark = pytest.mark.whole

FULLWIDTH_BAR = "\uff5c"
TEMPLATES_DIR = Path(__file__).parent / "templates"
CHATML = (TEMPLATES_DIR / "chatml.jinja").read_text(encoding="utf-8")
DEFAULT_SYSTEM = (TEMPLATES_DIR / "default_system.jinja").read_text(encoding="utf-8")
MARKED = (TEMPLATES_DIR / "marked.jinja").read_text(encoding="utf-8")
LLAMA_2 = (TEMPLATES_DIR / "llama_2.jinja").read_text(encoding="utf-8")
LLAMA_3 = (TEMPLATES_DIR / "llama_3.jinja").read_text(encoding="utf-8")
ZEPHYR = (TEMPLATES_DIR / "zephyr.jinja").read_text(encoding="utf-8")
DEEPSEEK = (TEMPLATES_DIR / "deepseek.jinja").read_text(encoding="utf-8")
GEMMA = (TEMPLATES_DIR / "gemma.jinja").read_text(encoding="utf-8")
THINKING = (TEMPLATES_DIR / "thinking.jinja").read_text(encoding="utf-8")
MARKED_THINKING = (TEMPLATES_DIR / "marked_thinking.jinja").read_text(encoding="utf-8")
# Each template with the token that ends its bot turns, None for EOS.
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "chatml_default_system": (DEFAULT_SYSTEM + CHATML, "<|im_end|>"),
    "marked": (MARKED, "<|im_end|>"),
    "llama_2": (LLAMA_2, None),
    "llama_3": (LLAMA_3, "<|eot_id|>"),
    "zephyr": (ZEPHYR, None),
    "deepseek": (DEEPSEEK, f"<{FULLWIDTH_BAR}end▁of▁sentence{FULLWIDTH_BAR}>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "thinking": (THINKING, "<|im_end|>"),
    "marked_thinking": (MARKED_THINKING, "<|im_end|>"),
    **{name: (make("</s>", {}).jinja(), "</s>") for name, make in OWN_TEMPLATES.items()},
}
SPECIALS = tuple(json.loads((TEMPLATES_DIR / "specials.json").read_text()))
EXACT_FAMILIES = ("byte_level", "llama_metaspace", "added_beyond_vocab")
FRAGMENTS = (
    *("def add(a, b):\n", "    return a + b", " ", "\n", "\u00a0", "\r\n", "\x00", "é", "🙂", "▁", "[INST]"),
    *("<|user|>", "<think>", "</think>", "{{ bos_token }}", "<", "|>", "s>", "im_end|>", "\ufdd1"),
)
plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd2"), max_size=8)
plain_contents = st.lists(st.sampled_from(FRAGMENTS) | plain_text, max_size=5).map("".join)
contents = st.lists(st.sampled_from(FRAGMENTS + SPECIALS) | plain_text, max_size=5).map("".join)
# Each example draws one of the families, too.
laws = settings(max_examples=15)


class Subject:
    """A tokenizer with a chat template: as it is saved in a dataset, and the encoder of both."""

    def __init__(self, family, name, folder):
        source, stop = TEMPLATES[name]
        tokenizer = load_tokenizer(family.tokenizer_dir, None)
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIALS])
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        tokenizer.chat_template = source
        self.is_exact = family.name in EXACT_FAMILIES
        self.has_system = name != "gemma"
        self.stop = stop or tokenizer.eos_token
        self.template = choose_template("tokenizer", tokenizer, {}, None)
        save_tokenizer(tokenizer, self.template.jinja(), folder)
        self.tokenizer = load_tokenizer(folder, None)
        self.encoder = make_encoder(tokenizer_config(self.tokenizer), self.template)
        self.special_texts = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        unknown = {self.tokenizer.convert_tokens_to_ids("<unk>")} if "<unk>" in self.special_texts else set()
        self.special_ids = set(self.tokenizer.convert_tokens_to_ids(self.special_texts)) - unknown

    def render(self, turns, **options):
        """The text that a client gets."""
        return self.tokenizer.apply_chat_template(as_messages(turns), tokenize=False, **options)

    def prompt(self, turns):
        """The text that a client gets to have the conversation go on."""
        return self.render(turns, add_generation_prompt=True)

    def decode(self, ids):
        """The text of ids, special tokens and all."""
        return self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)

    def takes(self, conversation):
        """Whether the template renders a conversation's beginnings as it renders them within the whole."""
        cuts_history = self.template.source == THINKING
        earlier = (turn for turn in conversation[:-1] if turn.role == "bot" and turn.is_supervised)
        return not (cuts_history and any("</think>" in turn.content for turn in earlier))


@pytest.fixture(scope="session", params=TEMPLATES)
def subjects(request, families, tmp_path_factory):
    """The tokenizers of every family with one template."""
    folder = tmp_path_factory.mktemp("subjects")
    return [Subject(family, request.param, folder / family.name) for family in families.values()]


@st.composite
def conversations(draw, subjects, content=contents):
    """A subject, and an optional system turn, then one to three exchanges of which at least one is supervised."""
    subject = draw(st.sampled_from(subjects))
    has_system = subject.has_system and draw(st.booleans())
    turns = [Turn("system", draw(content), False)] if has_system else []
    for is_supervised in draw(st.lists(st.booleans(), min_size=1, max_size=3).filter(any)):
        turns.append(Turn("human", draw(content), False))
        # Thinking, a template may drop; it has to leave something.
        answer = draw(content.filter(lambda text: text.rpartition("</think>")[2].strip()))
        turns.append(Turn("bot", answer, is_supervised))
    assume(subject.takes(turns))
    return subject, tuple(turns)


def as_messages(turns):
    """The turns as a client sends them."""
    roles = {"human": "user", "bot": "assistant"}
    return [{"role": roles.get(turn.role, turn.role), "content": turn.content} for turn in turns]


def encode(encoder, conversation):
    """Ids and mask of one conversation, as lists."""
    batch = encoder.encode_batch([conversation])
    return batch.input_ids.tolist(), batch.loss_mask.tolist()


def span_borders(mask):
    """Where the runs of supervised ids begin and end."""
    borders = np.flatnonzero(np.diff([0, *mask, 0])).tolist()
    return list(zip(borders[::2], borders[1::2], strict=True))


def supervised_positions(conversation):
    """The positions of the turns that are trained on."""
    return [position for position, turn in enumerate(conversation) if turn.is_supervised]


@laws
@given(drawn=st.data())
def test_ids_before_the_first_supervised_token_are_the_prompt_of_any_client(subjects, drawn):
    subject, conversation = drawn.draw(conversations(subjects, plain_contents))
    assume(not any(text in turn.content for turn in conversation for text in subject.special_texts))
    ids, mask = encode(subject.encoder, conversation)
    prompt = subject.tokenizer.apply_chat_template(
        as_messages(conversation[: supervised_positions(conversation)[0]]),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    assert ids[: mask.index(1)] == prompt


@laws
@given(drawn=st.data())
def test_stretches_are_the_rendered_conversation_and_begin_with_its_prompts(subjects, drawn):
    subject, conversation = drawn.draw(conversations(subjects))
    stretches = subject.template.stretches(conversation)
    assert "".join(stretch.text for stretch in stretches) == subject.render(conversation)
    positions = supervised_positions(conversation)
    supervised = [number for number, stretch in enumerate(stretches) if stretch.is_supervised]
    for position, number in zip(positions, supervised, strict=True):
        before = "".join(stretch.text for stretch in stretches[:number])
        assert before == subject.prompt(conversation[:position])
        answer = subject.render(conversation)[len(before) :]
        assert stretches[number].text.endswith(subject.stop)
        assert answer.startswith(stretches[number].text)
        following = answer[len(stretches[number].text) :]
        assert position + 1 < len(conversation) or not following.strip()


@laws
@given(drawn=st.data())
def test_ids_before_every_span_do_not_depend_on_its_answer(subjects, drawn):
    subject, conversation = drawn.draw(conversations(subjects))
    assume(conversation[-1].is_supervised)
    other_answer = drawn.draw(contents.filter(str.strip))
    other = (*conversation[:-1], Turn("bot", other_answer, True))
    (ids, mask), (other_ids, other_mask) = encode(subject.encoder, conversation), encode(subject.encoder, other)
    assert ids[: span_borders(mask)[-1][0]] == other_ids[: span_borders(other_mask)[-1][0]]


@laws
@given(drawn=st.data())
def test_ids_decode_to_the_rendered_text_before_every_span_and_as_a_whole(subjects, drawn):
    subject, conversation = drawn.draw(conversations(subjects))
    assume(subject.is_exact)
    ids, mask = encode(subject.encoder, conversation)
    starts = [start for start, _ in span_borders(mask)]
    ends = [*starts, len(ids)]
    expected = [subject.prompt(conversation[:position]) for position in supervised_positions(conversation)]
    expected.append(subject.render(conversation))
    for end, text in zip(ends, expected, strict=True):
        # What a decoder cannot tell: Metaspace's mark from a space, and its first one from none.
        assert subject.decode(ids[:end]).replace("▁", " ").lstrip(" ") == text.replace("▁", " ").lstrip(" ")


@laws
@given(drawn=st.data())
def test_content_never_yields_a_special_token(subjects, drawn):
    subject, conversation = drawn.draw(conversations(subjects))
    harmless = tuple(
        Turn(turn.role, "x" if turn.content.strip() else turn.content, turn.is_supervised) for turn in conversation
    )
    found, expected = (
        [token for token in encode(subject.encoder, turns)[0] if token in subject.special_ids]
        for turns in (conversation, harmless)
    )
    assert found == expected


@laws
@given(drawn=st.data())
def test_every_span_is_one_bot_turn_and_ends_with_the_stop_token(subjects, drawn):
    subject, conversation = drawn.draw(conversations(subjects))
    ids, mask = encode(subject.encoder, conversation)
    spans = [ids[start:end] for start, end in span_borders(mask)]
    assert len(spans) == len(supervised_positions(conversation))
    stop_id = subject.tokenizer.convert_tokens_to_ids(subject.stop)
    for span in spans:
        assert span[-1] == stop_id
        assert span.count(stop_id) == 1


@laws
@given(drawn=st.data())
def test_a_batch_is_its_conversations_end_to_end(subjects, drawn):
    subject, first = drawn.draw(conversations(subjects))
    others = drawn.draw(st.lists(conversations([subject]), max_size=3))
    batch = [first, *(conversation for _, conversation in others)]
    together = subject.encoder.encode_batch(batch)
    alone = [encode(subject.encoder, conversation) for conversation in batch]
    assert together.lengths.tolist() == [len(ids) for ids, _ in alone]
    assert together.input_ids.tolist() == [token for ids, _ in alone for token in ids]
    assert together.loss_mask.tolist() == [flag for _, mask in alone for flag in mask]


def test_the_stop_token_becomes_eos_of_the_saved_tokenizer(subjects):
    for subject in subjects:
        assert subject.tokenizer.eos_token == subject.stop == subject.template.stop == subject.template.eos
        assert subject.tokenizer.special_tokens_map == subject.template.variables


def test_a_text_record_is_supervised_but_for_its_first_token_and_ends_with_eos(subjects):
    for subject in subjects:
        ids, mask = encode(subject.encoder, (Turn("text", "def add(a, b):</s>", True),))
        assert ids[-1] == subject.tokenizer.eos_token_id
        assert [token for token in ids if token in subject.special_ids] == [subject.tokenizer.eos_token_id]
        assert mask == [0] + [1] * (len(ids) - 1)


def test_the_saved_template_is_the_one_chosen(subjects):
    for subject in subjects:
        saved = Path(subject.tokenizer.name_or_path, "chat_template.jinja").read_bytes()
        assert saved == subject.template.jinja().encode()
