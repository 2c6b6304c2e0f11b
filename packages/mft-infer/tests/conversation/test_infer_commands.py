"""The commands of a chat, and the conversations that they save and load."""

import json

import pytest

from mft_infer.conversation.commands import COMMANDS, run_command
from mft_infer.conversation.session import Session
from mft_infer.errors import InferError
from mft_infer.settings import AnswerSettings, PromptSettings


@pytest.fixture
def session(language_model):
    session = Session(language_model, AnswerSettings(max_new_tokens=4), PromptSettings(system="be"))
    list(session.ask("fox"))
    return session


def test_help_names_every_command(session):
    assert all(name in run_command("/help", [session]) for name in COMMANDS)


def test_reset_undo_and_system(session):
    assert "taken back" in run_command("/undo", [session])
    assert "nothing" in run_command("/undo", [session])
    list(session.ask("dog"))
    run_command("/system  speak up ", [session])
    assert session.messages()[0] == {"role": "system", "content": "speak up"}
    run_command("/system", [session])
    assert session.messages()[0]["role"] == "user"
    run_command("/reset", [session])
    assert session.messages() == []


def test_params_are_shown_and_changed(session):
    assert "temperature=0.0" in run_command("/params", [session])
    shown = run_command("/params temperature=0.5 top_k=7", [session])
    assert "temperature=0.5" in shown
    assert "top_k=7" in shown
    assert session.answer_settings.top_k == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/params speed=3", 'no parameter "speed"'),
        ("/params top_p=2", '"2" is no value of top_p'),
        ("/params temperature=inf", '"inf" is no value of temperature'),
        ("/params top_k=x", '"x" is no value of top_k'),
        ("/nothing", "no command /nothing"),
        ("/save", "needs a FILE"),
        ("/load", "needs a FILE"),
    ],
)
def test_what_a_command_cannot_do_is_told(line, message, session):
    with pytest.raises(InferError, match=message):
        run_command(line, [session])


def test_a_saved_conversation_is_a_training_record_and_can_be_loaded(session, tmp_path):
    path = tmp_path / "chats.jsonl"
    run_command(f"/save {path}", [session])
    list(session.ask("dog"))
    run_command(f"/save {path}", [session])
    first, second = map(json.loads, path.read_text().splitlines())
    assert [entry["role"] for entry in first["chat_rounds"]] == ["system", "human", "bot"]
    assert second["chat_rounds"][:3] == first["chat_rounds"]
    before = session.messages()
    run_command("/reset", [session])
    run_command("/system", [session])
    assert run_command(f"/load {path}", [session]) == "2 questions and their answers"
    assert session.messages() == before


def test_questions_without_an_answer_are_not_saved(session, tmp_path):
    """mft-data takes none of them."""
    path = tmp_path / "chats.jsonl"
    answer = session.ask("dog")
    next(answer)
    answer.close()
    session.rounds[-1]["content"] = ""  # as if it had been stopped a little earlier
    assert run_command(f"/save {path}", [session]) == f"appended to {path}, without 1 with an empty answer"
    assert [entry["content"] for entry in json.loads(path.read_text())["chat_rounds"]][:2] == ["be", "fox"]
    assert len(json.loads(path.read_text())["chat_rounds"]) == 3
    del session.rounds[:2]
    with pytest.raises(InferError, match="there is no answer to save"):
        run_command(f"/save {path}", [session])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no conversation"),
        ("{", "invalid JSON"),
        ("{}", "no conversation of questions and answers"),
        ('{"chat_rounds": [{"role": "human", "content": "x"}]}', "no conversation of questions and answers"),
        ('{"chat_rounds": [{"role": "human"}]}', "needs a role and a content"),
    ],
)
def test_a_file_without_a_conversation_changes_nothing(content, message, session, tmp_path):
    (tmp_path / "file").write_text(content)
    before = session.messages()
    with pytest.raises(InferError, match=message):
        run_command(f"/load {tmp_path / 'file'}", [session])
    assert session.messages() == before


def test_tokens_are_those_of_the_history(session):
    assert run_command("/tokens", [session]) == f"{session.num_tokens()} of 96 tokens"
    assert session.num_tokens() > 10
