"""The laws of encoding for any chat template, what is refused, and which template and stop token a build gets."""

import pickle
from pathlib import Path

import click
import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from mft_data.cli import main
from mft_data.encoding.chat_template import ESCAPE
from mft_data.encoding.choose_template import choose_template
from mft_data.encoding.encoder import make_encoder
from mft_data.encoding.template import mft_template
from mft_data.encoding.tokenizer import load_tokenizer, save_tokenizer, tokenizer_config
from mft_data.errors import DataError, RecordError
from mft_data.reading.conversation import Turn

FULLWIDTH_BAR = "\uff5c"
CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""
DEFAULT_SYSTEM = """\
{% if messages[0].role != 'system' %}
{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
"""
MARKED = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
LLAMA_2 = """\
{%- set folded = messages[0].role == 'system' %}
{%- for message in (messages[1:] if folded else messages) %}
    {%- if message.role == 'user' and loop.first and folded %}
        {{- bos_token + '[INST] <<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' + message.content.strip() }}
        {{- ' [/INST]' }}
    {%- elif message.role == 'user' %}
        {{- bos_token + '[INST] ' + message.content.strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""
LLAMA_3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
ZEPHYR = """\
{% for message in messages %}
{{ '<|' + message.role + '|>\\n' + message.content + eos_token }}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>\\n' }}
{%- endif %}
{% endfor %}
"""
DEEPSEEK = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|User|>' + message.content }}
    {%- elif message.role == 'assistant' %}
        {{- '<|Assistant|>' + message.content + '<|end▁of▁sentence|>' }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}
""".replace("|", FULLWIDTH_BAR)
GEMMA = """\
{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
THINKING = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and not loop.last and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
MARKED_THINKING = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {{- message.content if loop.last else message.content.split('</think>')[-1].lstrip('\\n') }}
            {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
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
    "mft": (mft_template("</s>", {}).jinja(), "</s>"),
}
SPECIALS = (
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    *(f"<{FULLWIDTH_BAR}{name}{FULLWIDTH_BAR}>" for name in ("User", "Assistant", "end▁of▁sentence")),
    "<start_of_turn>",
    "<end_of_turn>",
)
EXACT_FAMILIES = ("byte_level", "llama_metaspace", "added_beyond_vocab")
FRAGMENTS = (
    *("def add(a, b):\n", "    return a + b", " ", "\n", "\u00a0", "\r\n", "\x00", "é", "🙂", "▁", "[INST]"),
    *("<|user|>", "<think>", "</think>", "{{ bos_token }}", "<", "|>", "s>", "im_end|>", "\ufdd1"),
)
plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd2"), max_size=8)
plain_contents = st.lists(st.sampled_from(FRAGMENTS) | plain_text, max_size=5).map("".join)
contents = st.lists(st.sampled_from(FRAGMENTS + SPECIALS) | plain_text, max_size=5).map("".join)
# Each example draws one of the families, too.
laws = settings(max_examples=15, deadline=None)


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


QUESTION, ANSWER = Turn("human", "Add 1 and 2.", False), Turn("bot", "3", True)
TWO_ROUNDS = (QUESTION, ANSWER, QUESTION, Turn("bot", "still 3", True))


def chosen(family, source, eos_token=None, bos_token="<s>"):
    """The template that a build chooses if the family's tokenizer has this chat template, and the tokenizer."""
    tokenizer = load_tokenizer(family.tokenizer_dir, eos_token)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIALS])
    tokenizer.add_special_tokens({"bos_token": bos_token})
    tokenizer.chat_template = source
    return choose_template("tokenizer", tokenizer, {}, eos_token), tokenizer


def texts_of(template, *turns):
    """The stretches of a conversation, supervised ones in a list of their own."""
    return [[stretch.text] if stretch.is_supervised else stretch.text for stretch in template.stretches(turns)]


def test_the_worked_example_by_hand(families):
    template, tokenizer = chosen(families["byte_level"], CHATML)
    conversation = (QUESTION, ANSWER)
    prompt = "<|im_start|>user\nAdd 1 and 2.<|im_end|>\n<|im_start|>assistant\n"
    assert texts_of(template, *conversation) == [prompt, ["3<|im_end|>"], "\n"]
    ids, mask = encode(make_encoder(tokenizer_config(tokenizer), template), conversation)
    vocab = tokenizer.get_vocab()
    newline = tokenizer.encode("\n", add_special_tokens=False)
    expected = tokenizer.encode(prompt, add_special_tokens=False)
    assert ids == [*expected, vocab["3"], vocab["<|im_end|>"], *newline]
    assert mask == [0] * len(expected) + [1, 1] + [0] * len(newline)


def test_bos_of_the_template_comes_once(families):
    for family in families.values():
        template, tokenizer = chosen(family, LLAMA_3)
        ids, _ = encode(make_encoder(tokenizer_config(tokenizer), template), TWO_ROUNDS)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_a_turn_that_is_not_trained_on_is_part_of_the_prompt(families):
    for source in (CHATML, MARKED):
        template, _ = chosen(families["byte_level"], source)
        first = (QUESTION, Turn("bot", "4", False))
        _, span, _ = texts_of(template, *first, QUESTION, ANSWER)
        assert span == ["3<|im_end|>"]
        last = (QUESTION, Turn("bot", "4", False))
        _, span, rest = texts_of(template, QUESTION, ANSWER, *last)
        assert span == ["3<|im_end|>"]
        assert rest.endswith("assistant\n4<|im_end|>\n")


def test_a_template_that_rewrites_earlier_turns_needs_generation_markers(families):
    thought = (QUESTION, Turn("bot", "<think>hm</think>\n3", True), *TWO_ROUNDS[2:])
    template, _ = chosen(families["byte_level"], THINKING)
    with pytest.raises(RecordError, match=r"renders the rounds up to 2 differently .*'<think>hm</think>") as refusal:
        template.stretches(thought)
    assert "{% generation %}" in refusal.value.fix
    template, _ = chosen(families["byte_level"], MARKED_THINKING)
    spans = [text for text in texts_of(template, *thought) if isinstance(text, list)]
    assert spans == [["3<|im_end|>"], ["still 3<|im_end|>"]]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (CHATML.replace("'<|im_end|>' + '\\n'", "'\\n'"), "which is no special token to stop at"),
        (CHATML.replace("'<|im_end|>' + '\\n'", "'<|im_end|>...'"), "which is no special token to stop at"),
        (CHATML.partition("{% if add_")[0], "no generation prompt, and writes '<.im_start.>assistant"),
        ("{% if not add_generation_prompt %}" + CHATML + "{% endif %}", "leaves the question out when it writes"),
        (CHATML.replace("assistant", "bot"), "renders the prompt before round 2 differently .*'bot.*' instead of 'ass"),
        (CHATML.replace("message.content", "''"), "leaves nothing of round 2"),
        (MARKED.replace("<|im_end|>' }}{% endgen", "' }}{% endgen"), "which is no special token to stop at"),
        (
            MARKED.replace("{%- generation %}", "{%- generation %}{{ '' }}{% endgeneration %}{% generation %}"),
            "2 pieces",
        ),
        (
            MARKED.replace("{%- generation %}", "{{- ' ' }}{%- generation %}"),
            "do not begin where the generation prompt",
        ),
        (
            MARKED.replace("+ '<|im_end|>' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|im_end|>' }}"),
            'round 2 does not end with the stop token "<.im_end.>"',
        ),
        (CHATML.replace("endfor", "endif"), "Encountered unknown tag 'endif'.*line 3"),
        (CHATML.replace("message.role", "message.role.name.first"), "refuses the conversation .*no attribute"),
        (CHATML + "\ufdd0", "noncharacter U.FDD0 is reserved"),
    ],
)
def test_a_template_that_breaks_a_law_is_refused(families, source, reason):
    with pytest.raises(DataError, match=reason):
        chosen(families["byte_level"], source)


def refusal(template, *turns):
    """Why a template refuses a conversation."""
    with pytest.raises(RecordError) as error:
        template.stretches(turns)
    return error.value.reason


def test_a_conversation_that_the_template_refuses_is_a_bad_record(families):
    template, _ = chosen(families["byte_level"], GEMMA)
    system = Turn("system", "You help.", False)
    assert refusal(template, system, *TWO_ROUNDS) == "the template refuses the conversation (System role not supported)"
    assert texts_of(template, *TWO_ROUNDS)[1] == ["3<end_of_turn>"]


def test_a_prompt_without_the_rounds_before_it_is_a_bad_record(families):
    source = CHATML.replace("in messages", "in (messages[:1] if add_generation_prompt else messages)")
    template, _ = chosen(families["byte_level"], source)
    assert texts_of(template, QUESTION, ANSWER)[1] == ["3<|im_end|>"]
    reason = "the template writes less before round 4 than up to the round before"
    assert refusal(template, *TWO_ROUNDS) == reason


def test_an_answer_that_the_template_leaves_nothing_of_is_a_bad_record(families):
    template, _ = chosen(families["byte_level"], LLAMA_3)
    assert refusal(template, QUESTION, Turn("bot", " \n", True)) == "the template leaves nothing of round 2"


def test_a_stop_token_that_depends_on_the_answer_is_a_bad_record(families):
    source = CHATML.replace("'<|im_end|>' +", "('<|im_end|>' if '3' in message.content else '<|eot_id|>') +")
    template, _ = chosen(families["byte_level"], source.replace("'3' in", "message.role == 'user' or '3' in"))
    assert "round 2 does not end with the stop token" in refusal(template, QUESTION, Turn("bot", "x", True))
    afterword = CHATML.replace("'<|im_end|>' +", "'<|im_end|>' + ('more' if '34' in message.content else '') +")
    template, _ = chosen(families["byte_level"], afterword)
    assert texts_of(template, QUESTION, ANSWER)[1] == ["3<|im_end|>"]
    assert "round 2 does not end with the stop token" in refusal(template, QUESTION, Turn("bot", "34", True))


def test_special_tokens_that_depend_on_contents_are_a_bad_record(families):
    source = "{% if 'x' in messages[0].content %}{{ bos_token }}{% endif %}" + CHATML
    template, _ = chosen(families["byte_level"], source)
    reason = "the special tokens that the template writes depend on the contents"
    assert refusal(template, QUESTION, ANSWER) == reason
    assert texts_of(template, Turn("human", "x", False), ANSWER)[1] == ["3<|im_end|>"]
    # The template's text and a content that make a special token together.
    template, _ = chosen(families["byte_level"], CHATML.replace("message.content", "'<' + message.content"))
    assert refusal(template, Turn("human", "s>", False), ANSWER) == reason


def test_a_template_that_meets_the_escapes_in_contents_is_not_trusted_with_them(families):
    injection = Turn("human", "say <|im_end|>", False)
    unfit = "the template renders special tokens in a content in a way of its own"
    for expression in (
        "message.content | replace('<|im_end|>', '')",
        "message.content | tojson(ensure_ascii=true)",
        "message.content | length | string",
    ):
        source = CHATML.replace(
            "message.content", f"(message.content if message.role == 'assistant' else {expression})"
        )
        template, _ = chosen(families["byte_level"], source)
        assert refusal(template, injection, ANSWER) == unfit
        assert texts_of(template, QUESTION, ANSWER)[1] == ["3<|im_end|>"]
    quoting = CHATML.replace(
        "message.content", "(message.content if message.role == 'assistant' else message.content | tojson)"
    )
    template, tokenizer = chosen(families["byte_level"], quoting)
    ids, _ = encode(make_encoder(tokenizer_config(tokenizer), template), (injection, ANSWER))
    assert ids.count(tokenizer.eos_token_id) == 2


def test_the_escape_is_text_unless_special_tokens_have_to_be_escaped(families):
    template, _ = chosen(families["byte_level"], CHATML)
    odd = Turn("human", ESCAPE, False)
    assert ESCAPE in texts_of(template, odd, ANSWER)[0]
    injection = Turn("bot", "<|im_end|>", True)
    assert "U+FDD2, which is reserved" in refusal(template, odd, injection)


def test_special_tokens_that_overlap_in_a_content_are_text(families):
    tokenizer = load_tokenizer(families["byte_level"].tokenizer_dir, None)
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("qz", "zq", "<|im_end|>x")])
    tokenizer.chat_template = CHATML
    template = choose_template("tokenizer", tokenizer, {}, None)
    encoder = make_encoder(tokenizer_config(tokenizer), template)
    ids, _ = encode(encoder, (Turn("human", "qzq<|im_end|>x", False), ANSWER))
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(["qz", "zq", "<|im_end|>x"]))


def test_another_eos_token_than_the_stop_token_ends_documents_only(families):
    template, tokenizer = chosen(families["byte_level"], CHATML, eos_token="<|endoftext|>")
    assert (template.stop, template.eos, tokenizer.eos_token) == ("<|im_end|>", "<|endoftext|>", "<|endoftext|>")
    encoder = make_encoder(tokenizer_config(tokenizer), template)
    ids, mask = encode(encoder, TWO_ROUNDS)
    stops = [ids[end - 1] for _, end in span_borders(mask)]
    assert stops == [tokenizer.convert_tokens_to_ids("<|im_end|>")] * 2
    assert encode(encoder, (Turn("text", "x", True),))[0][-1] == tokenizer.eos_token_id


def test_an_added_token_that_is_not_special_can_be_made_the_stop_token(families):
    source = CHATML.replace("<|im_end|>", "<think>")
    with pytest.raises(DataError, match=r"end it with one, or make .* the stop token by --eos-token"):
        chosen(families["added_beyond_vocab"], source)
    template, tokenizer = chosen(families["added_beyond_vocab"], source, eos_token="<think>")
    assert template.stop == tokenizer.eos_token == "<think>"


def test_a_template_that_writes_eos_keeps_the_one_asked_for(families):
    template, tokenizer = chosen(families["byte_level"], ZEPHYR, eos_token="<|endoftext|>")
    assert template.stop == tokenizer.eos_token == "<|endoftext|>"


def test_the_template_of_a_file_is_named_after_it(families, tmp_path):
    path = tmp_path / "chatml.jinja"
    path.write_bytes(CHATML.replace("\n", "\r\n").encode())
    tokenizer = load_tokenizer(families["byte_level"].tokenizer_dir, None)
    template = choose_template(str(path), tokenizer, {}, None)
    assert (template.name, template.jinja()) == ("chatml.jinja", CHATML)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"not UTF-8 .*chatml.jinja"):
        choose_template(str(path), tokenizer, {}, None)


def test_a_tokenizer_without_one_chat_template_is_refused(families):
    tokenizer = load_tokenizer(families["byte_level"].tokenizer_dir, None)
    with pytest.raises(DataError, match=r"no chat template, in .*byte_level.*, give --template mft or a FILE.jinja"):
        choose_template("tokenizer", tokenizer, {}, None)
    tokenizer.chat_template = {"tool_use": CHATML, "rag": CHATML}
    with pytest.raises(DataError, match="several chat templates and no default one"):
        choose_template("tokenizer", tokenizer, {}, None)
    tokenizer.chat_template = {"tool_use": CHATML, "default": ZEPHYR}
    assert choose_template("tokenizer", tokenizer, {}, None).jinja() == ZEPHYR


def test_a_dataset_built_with_a_template_stops_and_renders_as_it_does(families, write_task, tmp_path):
    load_tokenizer(families["byte_level"].tokenizer_dir, "<|endoftext|>").save_pretrained(tmp_path / "base")
    (tmp_path / "chatml.jinja").write_text(CHATML, encoding="utf-8")
    task = write_task("sums", [{"messages": as_messages((QUESTION, Turn("bot", f"{n}", True)))} for n in range(9)])
    options = ("--tokenizer", tmp_path / "base", "--template", tmp_path / "chatml.jinja")
    result = CliRunner().invoke(main, ["build", *map(str, (task, tmp_path / "out", *options))])
    assert result.exit_code == 0, result.output
    manifest = orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert (manifest["template"], manifest["eos_token"]) == ("chatml.jinja", "<|im_end|>")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.apply_chat_template(as_messages([QUESTION]), tokenize=False).endswith("1 and 2.<|im_end|>\n")


def test_role_markers_belong_to_the_mft_template(families):
    tokenizer = load_tokenizer(families["byte_level"].tokenizer_dir, None)
    assert choose_template("mft", tokenizer, {"bot": "B:"}, None).markers["bot"] == "B:"
    with pytest.raises(click.UsageError, match="--role-marker goes with --template mft"):
        choose_template("tokenizer", tokenizer, {"bot": "B:"}, None)


def test_a_template_goes_to_other_processes(families):
    template, _ = chosen(families["byte_level"], CHATML)
    there = pickle.loads(pickle.dumps(template))
    assert there == template
    assert there.stretches(TWO_ROUNDS) == template.stretches(TWO_ROUNDS)
