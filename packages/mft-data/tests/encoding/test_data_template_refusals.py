"""What is refused of a chat template, and of a conversation under one; the worked example by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken

from mft_data.encoding.chat_template import ESCAPE
from mft_data.encoding.choose_template import choose_template
from mft_data.encoding.encoder import make_encoder
from mft_data.encoding.tokenizer import load_tokenizer, tokenizer_config
from mft_data.errors import DataError, RecordError
from mft_data.reading.conversation import Turn

TEMPLATES_DIR = Path(__file__).parent / "templates"
CHATML = (TEMPLATES_DIR / "chatml.jinja").read_text(encoding="utf-8")
MARKED = (TEMPLATES_DIR / "marked.jinja").read_text(encoding="utf-8")
LLAMA_3 = (TEMPLATES_DIR / "llama_3.jinja").read_text(encoding="utf-8")
GEMMA = (TEMPLATES_DIR / "gemma.jinja").read_text(encoding="utf-8")
THINKING = (TEMPLATES_DIR / "thinking.jinja").read_text(encoding="utf-8")
MARKED_THINKING = (TEMPLATES_DIR / "marked_thinking.jinja").read_text(encoding="utf-8")
QUESTION, ANSWER = Turn("human", "Add 1 and 2.", False), Turn("bot", "3", True)
TWO_ROUNDS = (QUESTION, ANSWER, QUESTION, Turn("bot", "still 3", True))


def test_the_worked_example_by_hand(families, chosen, encode, texts_of):
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


def test_bos_of_the_template_comes_once(families, chosen, encode):
    for family in families.values():
        template, tokenizer = chosen(family, LLAMA_3)
        ids, _ = encode(make_encoder(tokenizer_config(tokenizer), template), TWO_ROUNDS)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_a_turn_that_is_not_trained_on_is_part_of_the_prompt(families, chosen, texts_of):
    for source in (CHATML, MARKED):
        template, _ = chosen(families["byte_level"], source)
        first = (QUESTION, Turn("bot", "4", False))
        _, span, _ = texts_of(template, *first, QUESTION, ANSWER)
        assert span == ["3<|im_end|>"]
        last = (QUESTION, Turn("bot", "4", False))
        _, span, rest = texts_of(template, QUESTION, ANSWER, *last)
        assert span == ["3<|im_end|>"]
        assert rest.endswith("assistant\n4<|im_end|>\n")


def test_a_template_that_rewrites_earlier_turns_needs_generation_markers(families, chosen, texts_of):
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
def test_a_template_that_breaks_a_law_is_refused(families, source, reason, chosen):
    with pytest.raises(DataError, match=reason):
        chosen(families["byte_level"], source)


def refusal(template, *turns):
    """Why a template refuses a conversation."""
    with pytest.raises(RecordError) as error:
        template.stretches(turns)
    return error.value.reason


def test_a_template_that_begins_only_the_last_turn_as_its_prompt_does_asks_for_that_turn(families, chosen, texts_of):
    """As Qwen3.5's does, whose prompt opens the reasoning."""
    opened = "('<think>\\n' if message.role == 'assistant' and loop.last else '') + message.content"
    source = CHATML.replace("message.content", opened).replace("assistant\\n'", "assistant\\n<think>\\n'")
    template, _ = chosen(families["byte_level"], source)
    with pytest.raises(RecordError, match="the prompt before round 2 differently") as error:
        template.stretches(TWO_ROUNDS)
    assert "--train-on last" in error.value.fix
    last_alone = (QUESTION, replace(ANSWER, is_supervised=False), *TWO_ROUNDS[2:])
    assert texts_of(template, *last_alone)[1] == ["still 3<|im_end|>"]


def test_a_conversation_that_the_template_refuses_is_a_bad_record(families, chosen, texts_of):
    template, _ = chosen(families["byte_level"], GEMMA)
    system = Turn("system", "You help.", False)
    assert refusal(template, system, *TWO_ROUNDS) == "the template refuses the conversation (System role not supported)"
    assert texts_of(template, *TWO_ROUNDS)[1] == ["3<end_of_turn>"]


def test_a_prompt_without_the_rounds_before_it_is_a_bad_record(families, chosen, texts_of):
    source = CHATML.replace("in messages", "in (messages[:1] if add_generation_prompt else messages)")
    template, _ = chosen(families["byte_level"], source)
    assert texts_of(template, QUESTION, ANSWER)[1] == ["3<|im_end|>"]
    reason = "the template writes less before round 4 than up to the round before"
    assert refusal(template, *TWO_ROUNDS) == reason


def test_an_answer_that_the_template_leaves_nothing_of_is_a_bad_record(families, chosen):
    template, _ = chosen(families["byte_level"], LLAMA_3)
    assert refusal(template, QUESTION, Turn("bot", " \n", True)) == "the template leaves nothing of round 2"


def test_a_stop_token_that_depends_on_the_answer_is_a_bad_record(families, chosen, texts_of):
    source = CHATML.replace("'<|im_end|>' +", "('<|im_end|>' if '3' in message.content else '<|eot_id|>') +")
    template, _ = chosen(families["byte_level"], source.replace("'3' in", "message.role == 'user' or '3' in"))
    assert "round 2 does not end with the stop token" in refusal(template, QUESTION, Turn("bot", "x", True))
    afterword = CHATML.replace("'<|im_end|>' +", "'<|im_end|>' + ('more' if '34' in message.content else '') +")
    template, _ = chosen(families["byte_level"], afterword)
    assert texts_of(template, QUESTION, ANSWER)[1] == ["3<|im_end|>"]
    assert "round 2 does not end with the stop token" in refusal(template, QUESTION, Turn("bot", "34", True))


def test_special_tokens_that_depend_on_contents_are_a_bad_record(families, chosen, texts_of):
    source = "{% if 'x' in messages[0].content %}{{ bos_token }}{% endif %}" + CHATML
    template, _ = chosen(families["byte_level"], source)
    reason = "the special tokens that the template writes depend on the contents"
    assert refusal(template, QUESTION, ANSWER) == reason
    assert texts_of(template, Turn("human", "x", False), ANSWER)[1] == ["3<|im_end|>"]
    # The template's text and a content that make a special token together.
    template, _ = chosen(families["byte_level"], CHATML.replace("message.content", "'<' + message.content"))
    assert refusal(template, Turn("human", "s>", False), ANSWER) == reason


def test_a_template_that_meets_the_escapes_in_contents_is_not_trusted_with_them(families, chosen, encode, texts_of):
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


def test_the_escape_is_text_unless_special_tokens_have_to_be_escaped(families, chosen, texts_of):
    template, _ = chosen(families["byte_level"], CHATML)
    odd = Turn("human", ESCAPE, False)
    assert ESCAPE in texts_of(template, odd, ANSWER)[0]
    injection = Turn("bot", "<|im_end|>", True)
    assert "U+FDD2, which is reserved" in refusal(template, odd, injection)


def test_special_tokens_that_overlap_in_a_content_are_text(families, encode):
    tokenizer = load_tokenizer(families["byte_level"].tokenizer_dir, None)
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("qz", "zq", "<|im_end|>x")])
    tokenizer.chat_template = CHATML
    template = choose_template("tokenizer", tokenizer, {}, None)
    encoder = make_encoder(tokenizer_config(tokenizer), template)
    ids, _ = encode(encoder, (Turn("human", "qzq<|im_end|>x", False), ANSWER))
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(["qz", "zq", "<|im_end|>x"]))
