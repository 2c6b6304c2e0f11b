"""What the tests of chat templates share: a build's choice of template, and conversations as ids and as stretches."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken

from mft_data.encoding.choose_template import choose_template
from mft_data.encoding.tokenizer import load_tokenizer

SPECIALS = tuple(json.loads((Path(__file__).parent / "templates" / "specials.json").read_text()))


@pytest.fixture(scope="session")
def chat_specials():
    """The special tokens that the tests' chat templates write."""
    return SPECIALS


@pytest.fixture(scope="session")
def encode():
    """Ids and mask of one conversation, as lists."""

    def encode(encoder, conversation):
        batch = encoder.encode_batch([conversation])
        return batch.input_ids.tolist(), batch.loss_mask.tolist()

    return encode


@pytest.fixture(scope="session")
def chosen():
    """The template that a build chooses if a family's tokenizer has this chat template, and the tokenizer."""

    def chosen(family, source, eos_token=None, bos_token="<s>"):
        tokenizer = load_tokenizer(family.tokenizer_dir, eos_token)
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIALS])
        tokenizer.add_special_tokens({"bos_token": bos_token})
        tokenizer.chat_template = source
        return choose_template("tokenizer", tokenizer, {}, eos_token), tokenizer

    return chosen


@pytest.fixture(scope="session")
def texts_of():
    """The stretches of a conversation, supervised ones in a list of their own."""

    def texts_of(template, *turns):
        return [[stretch.text] if stretch.is_supervised else stretch.text for stretch in template.stretches(turns)]

    return texts_of
