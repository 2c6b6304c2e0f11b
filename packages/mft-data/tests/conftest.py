"""Small tokenizers of the families that matter, trained here, and helpers to write sources."""

import os
from itertools import product
from pathlib import Path

import orjson
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mft_data.encoding.encoder import Encoder, make_encoder
from mft_data.encoding.template import OWN_TEMPLATES, Template
from mft_data.encoding.tokenizer import load_tokenizer, tokenizer_config

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CORPUS = [
    "def add(a, b):\n    return a + b\n",
    "for i in range(10):\n    print(i, i * i)\n",
    "Write a function that adds two numbers. Then test it.\nsystem human bot <s>",
    "class Stack:\n    def __init__(self):\n        self.items = []\n",
    "What is the sum of the list? The sum of the list is 45.",
    "im_end im_start end of text unk pad <|> a / b",
]
SMOL_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
LLAMA_SPECIALS = ["<unk>", "<s>", "</s>"]
FAMILIES = ["byte_level", "llama_prepend", "llama_metaspace", "unigram", "added_beyond_vocab"]
# The families whose decoder gives back every text, newlines and spaces included.
EXACT_FAMILIES = ["byte_level", "llama_metaspace", "added_beyond_vocab"]


def byte_level() -> Tokenizer:
    """Byte-level BPE with its special tokens inside the model's vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SMOL_SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def added_beyond_vocab() -> Tokenizer:
    """Byte-level BPE with special tokens appended after training, a plain added token, and a BOS post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<think>"])
    tokenizer.add_special_tokens(["<|begin|>", "<|im_end|>", "<|im_end|>x"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    return tokenizer


def llama(metaspace: bool) -> Tokenizer:
    """BPE with byte fallback; the space before a text comes from a normalizer, or from Metaspace for the first word."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*LLAMA_SPECIALS, *byte_tokens], show_progress=False, max_token_length=8
    )
    trained.train_from_iterator(CORPUS, trainer)
    model = orjson.loads(trained.to_str())["model"]
    # As converted SentencePiece models have it: merges that build `</s>` out of text.
    merges = [tuple(pair) for pair in model["merges"]]
    vocab = dict(model["vocab"])
    for piece in ("s>", "</"):
        vocab.setdefault(piece, len(vocab))
    merges = [("s", ">"), ("<", "/"), ("</", "s>"), *(pair for pair in merges if "".join(pair) not in ("s>", "</"))]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in LLAMA_SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """Unigram with Metaspace before every word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=LLAMA_SPECIALS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


MAKERS = {
    "byte_level": (byte_level, "<|im_end|>"),
    "added_beyond_vocab": (added_beyond_vocab, "<|im_end|>"),
    "llama_prepend": (lambda: llama(metaspace=False), "</s>"),
    "llama_metaspace": (lambda: llama(metaspace=True), "</s>"),
    "unigram": (unigram, "</s>"),
}


class Family:
    """One tokenizer directory and template with what the tests need of them."""

    def __init__(self, name: str, tokenizer_dir: Path, template: str = "mft") -> None:
        self.name = name
        self.tokenizer_dir = tokenizer_dir
        self.tokenizer = load_tokenizer(tokenizer_dir, None)
        self.special_texts = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self.special_ids = set(self.tokenizer.convert_tokens_to_ids(self.special_texts))
        self.template: Template = OWN_TEMPLATES[template](self.tokenizer.eos_token, {})
        self.encoder: Encoder = make_encoder(tokenizer_config(self.tokenizer), self.template)
        self.tokenizer.chat_template = self.template.jinja()


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    """Every family by its name."""
    made = {}
    for name, (make, eos_token) in MAKERS.items():
        tokenizer_dir = tmp_path_factory.mktemp(name)
        PreTrainedTokenizerFast(tokenizer_object=make(), eos_token=eos_token).save_pretrained(tokenizer_dir)
        made[name] = Family(name, tokenizer_dir)
    return made


@pytest.fixture(scope="session")
def tokenizer_dir(families: dict[str, Family]) -> Path:
    """The tokenizer directory that most tests use."""
    return families["byte_level"].tokenizer_dir


@pytest.fixture
def write_task(tmp_path: Path):
    """Writes records, or lines as they are, to `NAME/part.jsonl` and returns the folder."""

    def write(name: str, records: list, file_name: str = "part.jsonl") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        lines = [record if isinstance(record, bytes) else orjson.dumps(record) for record in records]
        (folder / file_name).write_bytes(b"".join(line + b"\n" for line in lines))
        return folder

    return write


def with_template(families: dict[str, Family], param: tuple[str, str]) -> Family:
    """The family of a name with one of the package's own templates."""
    name, template = param
    return families[name] if template == "mft" else Family(name, families[name].tokenizer_dir, template)


@pytest.fixture(scope="session", params=product(FAMILIES, OWN_TEMPLATES), ids="-".join)
def family(families: dict[str, Family], request: pytest.FixtureRequest) -> Family:
    """Each family in turn, with each of the package's own templates."""
    return with_template(families, request.param)


@pytest.fixture(scope="session", params=product(EXACT_FAMILIES, OWN_TEMPLATES), ids="-".join)
def exact_family(families: dict[str, Family], request: pytest.FixtureRequest) -> Family:
    """Each family that decodes to the exact text, in turn, with each of the package's own templates."""
    return with_template(families, request.param)
