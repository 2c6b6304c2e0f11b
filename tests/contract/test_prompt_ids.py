"""The ids of a prompt at inference are those of training: every turn, for families of tokenizers and of templates."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "def add(a, b):\n    return a + b\n",
    "What is the sum? The sum of the list is 45.",
    "user assistant <|im_end|>",
]
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
MARKED = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
INST = """\
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- bos_token + '[INST] ' + message.content.strip() + ' [/INST]' }}
    {%- elif message.role == 'system' %}{{- message.content + '\\n' }}
    {%- else %}{{- ' ' + message.content.strip() + ' ' + eos_token }}{%- endif %}
{%- endfor %}
"""
TEMPLATES = {"mft": None, "chatml": CHATML, "marked": MARKED, "inst": INST}
CONVERSATIONS = [
    ["hi", "there"],
    ["sum <|im_end|> of\n 1, 2?", "3 </s> is it", " and ", "x"],
    ["é 你好 🙂", "def add(a, b):\n    return a + b\n", "<|im_start|>", "<unk>ok"],
    ["  spaces  ", " lead", "\nline", "tail \n", "[INST]", "1"],
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """As a converted SentencePiece model: a space before the first word, bytes for unknown characters, a BOS."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*SPECIALS, *bytes_], show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=model["vocab"],
            merges=[tuple(pair) for pair in model["merges"]],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


FAMILIES = {"byte_level": byte_level, "metaspace": metaspace, "unigram": unigram}


@pytest.fixture(scope="module")
def tokenizer_dirs(tmp_path_factory):
    directories = {}
    for name, make in FAMILIES.items():
        directories[name] = tmp_path_factory.mktemp(name)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=make(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )
        tokenizer.save_pretrained(directories[name])
    return directories


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_of_every_turn_have_the_ids_of_training(template, family, tokenizer_dirs, tmp_path):
    """Training's ids are those of the real mft-data before each supervised span; one row is one conversation."""
    from streaming import LocalDataset

    from mft_data.cli import main
    from mft_infer.encoding.chat_template import Conversation
    from mft_infer.encoding.prompt_encoder import PromptEncoder

    roles = ("human", "bot")
    rounds = [
        [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
        for contents in CONVERSATIONS
    ]
    rounds.append([{"role": "system", "content": "be </s> brief"}, *rounds[0]])
    (tmp_path / "task").mkdir()
    lines = [json.dumps({"id": index, "chat_rounds": turns}) + "\n" for index, turns in enumerate(rounds)]
    (tmp_path / "task" / "part.jsonl").write_text("".join(lines), "utf-8")
    choice = "mft"
    if TEMPLATES[template] is not None:
        choice = str(tmp_path / "template.jinja")
        (tmp_path / "template.jinja").write_text(TEMPLATES[template], "utf-8")
    options = ["--template", choice, "--packing", "none", "--validation", "0", "--seq-length", "512"]
    dataset = tmp_path / "dataset"
    arguments = ["build", str(tmp_path / "task"), str(dataset), "--tokenizer", str(tokenizer_dirs[family]), *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output

    trained = set()
    for row in LocalDataset(local=str(dataset / "train" / "task")):
        mask = np.concatenate([[0], row["loss_mask"]])
        starts = np.flatnonzero(np.diff(mask) == 1)
        trained.add(tuple(tuple(row["input_ids"][:start].tolist()) for start in starts))
    tokenizer = AutoTokenizer.from_pretrained(dataset / "tokenizer", trust_remote_code=False)
    encoder = PromptEncoder(tokenizer, "dataset")
    clients = {"human": "user", "bot": "assistant"}
    asked = set()
    for turns in rounds:
        messages = [{**turn, "role": clients.get(turn["role"], "system")} for turn in turns]
        bots = [index for index, turn in enumerate(messages) if turn["role"] == "assistant"]
        asked.add(tuple(tuple(encoder.encode_conversation(Conversation(messages[:index]))) for index in bots))
    assert len(trained) == len(rounds)
    assert asked == trained
