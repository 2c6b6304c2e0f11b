"""A conversation that is saved in a chat is training data as it is."""

import json

from click.testing import CliRunner


def test_a_saved_chat_is_built_into_rows(base_model, tmp_path):
    """Two conversations of a real session, one of them with an answer that was stopped before its first token."""
    from streaming import LocalDataset
    from transformers import AutoTokenizer

    from mft_data.cli import main
    from mft_infer.conversation.commands import run_command
    from mft_infer.conversation.session import Session
    from mft_infer.model.language_model import load_language_model
    from mft_infer.settings import AnswerSettings, ModelSettings, PromptSettings

    model = load_language_model(str(base_model), ModelSettings(device="cpu"))
    session = Session(
        model, AnswerSettings(max_new_tokens=8, temperature=2, seed=1), PromptSettings(system="be </s> brief")
    )
    (tmp_path / "chats").mkdir()
    for question in ("add 1 and 2", "é 你 🙂 <|end|>"):
        list(session.ask(question))
        run_command(f"/save {tmp_path / 'chats' / 'chats.jsonl'}", [session])
    session.rounds[-1]["content"] = ""
    run_command(f"/save {tmp_path / 'chats' / 'chats.jsonl'}", [session])
    out = tmp_path / "dataset"
    command = (
        f"build {tmp_path / 'chats'} {out} --tokenizer {base_model} --packing none --validation 0 --seq-length 256"
    )
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 0, result.output
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer", trust_remote_code=False)
    rows = [tokenizer.decode(row["input_ids"]) for row in LocalDataset(local=str(out / "train" / "chats"))]
    saved = (tmp_path / "chats" / "chats.jsonl").read_text("utf-8").splitlines()
    conversations = [json.loads(line)["chat_rounds"] for line in saved]
    assert [len(rounds) for rounds in conversations] == [3, 5, 3]
    for rounds in conversations:
        assert any(all(turn["content"] in row for turn in rounds) for row in rows)
