"""Other readers of a merged model: what llama.cpp's converter takes from its files, by the gguf package's own code."""

from gguf import SpecialVocab
from transformers import AutoTokenizer


def test_the_gguf_converter_finds_vocabulary_eos_and_template(base_dir, make_adapter, run_merge, tmp_path):
    adapter = make_adapter(base_dir("llama"), tmp_path / "adapter")
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged", trust_remote_code=False)
    special = SpecialVocab(tmp_path / "merged", load_merges=False, n_vocab=len(tokenizer))
    assert special.special_token_ids["eos"] == tokenizer.eos_token_id == 256
    assert special.chat_template == (adapter / "chat_template.jinja").read_text()


def test_the_gguf_converter_finds_the_eos_of_a_base_without_a_tokenizer_config(
    base_dir, make_adapter, run_merge, tmp_path
):
    """Without a name for the token it falls back on config.json, where the ids of the base are."""
    adapter = make_adapter(base_dir("llama"), tmp_path / "adapter")
    (adapter / "tokenizer_config.json").unlink()
    assert run_merge(adapter, tmp_path / "merged").exit_code == 0
    special = SpecialVocab(tmp_path / "merged", load_merges=False, n_vocab=258)
    assert special.special_token_ids["eos"] == 2
