"""A session: history, interrupts, the context, what is not read again; and the same over a pipe."""

import io
import json

import pytest
import torch
from rich.console import Console

from mft_infer.conversation.console import take_turn
from mft_infer.conversation.pipe import chat_over_pipe
from mft_infer.conversation.session import Session
from mft_infer.errors import InferError, PromptError
from mft_infer.model.language_model import load_language_model
from mft_infer.settings import AnswerSettings, ModelSettings, PromptSettings


@pytest.fixture
def session(language_model):
    return Session(language_model, AnswerSettings(max_new_tokens=6), PromptSettings())


def say(session, content: str) -> str:
    return "".join(session.ask(content))


def test_each_line_of_a_pipe_is_answered_in_turn(run_infer, model_dir, write_prompts):
    """The second answer is that of a prompt that holds the first exchange."""
    result = run_infer("chat", model_dir, "--max-new-tokens", 6, "--system", "be", input="fox\n\ndog\n")
    assert result.exit_code == 0, result.output
    conversation = [{"role": "system", "content": "be"}]
    expected = ""
    for message in ("fox", "dog"):
        conversation.append({"role": "user", "content": message})
        prompts = write_prompts([{"problem_id": "x", "messages": conversation}])
        out = run_infer("generate", model_dir, prompts, "-", "--max-new-tokens", 6).stdout
        completion = json.loads(out)["completion"]
        expected += completion + "\n"
        conversation.append({"role": "assistant", "content": completion})
    assert result.stdout == expected


def test_commands_in_a_pipe_are_messages(run_infer, model_dir):
    result = run_infer("chat", model_dir, "--max-new-tokens", 3, "--stop", "\n", input="/exit\nfox\n")
    assert result.stdout.count("\n") == 2


@pytest.mark.parametrize(
    ("message", "error"),
    [(b"fox\nd\xffg\n", "the message is no UTF-8, in <stdin> line 2"), ("fox\n" + "dog " * 99, "the message has")],
)
def test_a_message_that_cannot_be_answered_ends_a_pipe_after_the_answers(message, error, run_infer, model_dir):
    result = run_infer("chat", model_dir, "--max-new-tokens", 3, input=message)
    assert result.exit_code == 1
    assert result.stdout == run_infer("chat", model_dir, "--max-new-tokens", 3, input="fox\n").stdout
    assert f"Error: {error}" in result.stderr


def test_a_template_that_makes_nothing_is_told(run_infer, damaged):
    (damaged / "chat_template.jinja").write_text("")
    result = run_infer("chat", damaged, input="fox\n")
    assert (result.exit_code, result.stderr) == (1, "Error: the chat template makes nothing of the messages\n")


def test_no_part_of_a_stop_text_is_said(language_model):
    """Every text within the answer stops it, across any tokens; what was said is what the history has."""
    plain = say(Session(language_model, AnswerSettings(max_new_tokens=24), PromptSettings()), "fox")
    for start in range(1, len(plain) - 4):
        settings = AnswerSettings(max_new_tokens=24, stop=(plain[start : start + 4], "never"))
        session = Session(language_model, settings, PromptSettings())
        said = say(session, "fox")
        assert said == plain[: plain.find(settings.stop[0])]
        assert session.rounds[-1]["content"] == said


def test_two_models_answer_a_pipe_one_after_the_other(run_infer, model_dir, adapter_dir):
    options = ("--max-new-tokens", 6)
    both = run_infer("chat", adapter_dir, "--beside", model_dir, *options, input="fox\n").stdout
    alone = [run_infer("chat", model, *options, input="fox\n").stdout for model in (adapter_dir, model_dir)]
    assert both == f"== {adapter_dir} ==\n{alone[0]}== {model_dir} ==\n{alone[1]}"


def test_answers_stream_in_pieces(session):
    pieces = list(session.ask("fox"))
    assert len(pieces) > 1
    assert "" not in pieces
    assert session.rounds == [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "".join(pieces)}]


def test_an_answer_that_is_left_stays_in_the_history_as_far_as_it_came(session):
    answer = session.ask("fox")
    started = next(answer)
    answer.close()
    assert session.rounds[1]["content"] == started
    assert say(session, "dog")
    assert len(session.rounds) == 4


def test_undo_and_retry_take_back_one_exchange(session):
    first = say(session, "fox")
    say(session, "dog")
    assert session.undo()
    assert [message["content"] for message in session.rounds] == ["fox", first]
    assert session.retry() == "fox"
    assert session.rounds == []
    assert say(session, "fox") == first
    assert session.undo()
    assert not session.undo()
    assert session.retry() is None


def test_only_what_is_new_is_read(session, monkeypatch):
    read: list[tuple[int, int]] = []  # new tokens and all tokens of each forward
    logits = type(session.language_model.forward).logits

    def counted(self, input_ids, attention_mask, cache):
        read.append((input_ids.shape[1], attention_mask.shape[1]))
        return logits(self, input_ids, attention_mask, cache)

    monkeypatch.setattr(type(session.language_model.forward), "logits", counted)
    say(session, "fox fox fox fox")
    first_prompt = read[0][0]
    read.clear()
    say(session, "a")
    new, asked = read[0]
    assert asked - new >= first_prompt
    session.undo()
    read.clear()
    say(session, "b")
    new, asked = read[0]
    assert asked - new >= first_prompt


def test_what_is_not_read_again_changes_no_answer(language_model):
    """The same words after another past: undone, begun anew, cut off."""
    settings = AnswerSettings(max_new_tokens=5)
    expected = Session(language_model, settings, PromptSettings())
    texts = [say(expected, "fox"), say(expected, "dog")]
    session = Session(language_model, settings, PromptSettings())
    say(session, "quick brown")
    next(session.ask("lazy"))
    session.rounds.clear()
    assert say(session, "fox") == texts[0]
    say(session, "brown")
    session.undo()
    assert say(session, "dog") == texts[1]


def test_an_interrupt_within_a_forward_spoils_no_later_answer(language_model):
    """Half of the layers have taken in a token then, and the other half has not."""
    settings = AnswerSettings(max_new_tokens=5)
    expected = say(Session(language_model, settings, PromptSettings()), "dog")
    session = Session(language_model, settings, PromptSettings())
    answer = session.ask("fox")
    next(answer)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = language_model.model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(answer)
    hook.remove()
    session.undo()
    assert say(session, "dog") == expected


def test_a_full_context_leaves_out_the_oldest_rounds(session):
    for number in range(8):
        say(session, f"fox {number}")
    assert session.num_left_out > 0
    assert session.num_left_out % 2 == 0
    assert len(session.rounds) == 16


def test_a_message_that_never_fits_is_refused_and_forgotten(session):
    with pytest.raises(PromptError, match="context has 96"):
        say(session, "the lazy dog " * 40)
    assert session.rounds == []
    with pytest.raises(InferError, match="context has 96"):
        chat_over_pipe([session], ["the lazy dog " * 40], print)


def test_what_one_of_two_models_cannot_take_changes_neither_history(language_model, big_cache_model, capsys):
    """Not a message that is too long for one of them, nor a /retry that no longer fits one."""
    wide = load_language_model(str(big_cache_model), ModelSettings(device="cpu"))
    settings = AnswerSettings(max_new_tokens=2)
    sessions = [Session(model, settings, PromptSettings()) for model in (wide, language_model)]
    console = Console(file=io.StringIO())
    take_turn("fox", sessions, console)
    before = [list(session.rounds) for session in sessions]
    assert all(before)
    take_turn("fox " * 95, sessions, console)
    assert "the model's context has 96 for it" in capsys.readouterr().err
    assert [session.rounds for session in sessions] == before
    take_turn("/system " + "fox " * 95, sessions, console)
    take_turn("/retry", sessions, console)
    assert "the model's context has 96 for it" in capsys.readouterr().err
    assert [session.rounds for session in sessions] == before


@pytest.mark.parametrize("line", ["fox \udcff", "/system \udcff"])
def test_bytes_of_a_terminal_that_are_no_utf_8_are_refused(line, session, capsys):
    take_turn(line, [session], Console(file=io.StringIO()))
    assert capsys.readouterr().err == "Error: the message is no UTF-8\n"
    assert session.messages() == []


def test_an_interrupt_before_the_answer_has_begun_ends_no_chat(session, capsys, monkeypatch):
    console = Console(file=io.StringIO())
    take_turn("fox", [session], console)
    before = list(session.rounds)

    def interrupted(_: object) -> list[int]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "_fitting_ids", interrupted)  # while the history is encoded
        take_turn("/retry", [session], console)
    assert capsys.readouterr().err.endswith("(stopped)\n")
    assert session.rounds == before


def test_a_chat_goes_on_after_memory_ran_out(language_model, capsys):
    session = Session(language_model, AnswerSettings(max_new_tokens=2), PromptSettings())
    console = Console(file=io.StringIO())

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with language_model.model.register_forward_pre_hook(fail):
        take_turn("fox", [session], console)
    assert "Error: the device has not enough memory" in capsys.readouterr().err
    take_turn("/retry", [session], console)
    assert session.rounds[-1]["content"] != ""
    assert len(session.rounds) == 2


def test_a_cut_answer_is_told(session, capsys):
    chat_over_pipe([session], ["fox"], lambda text: None)
    assert "cut off" in capsys.readouterr().err


def test_sampled_chats_repeat_with_the_seed(run_infer, model_dir):
    options = ("--temperature", 1.2, "--max-new-tokens", 8)
    one, same = (run_infer("chat", model_dir, *options, input="fox\ndog\n").stdout for _ in range(2))
    assert one == same
    assert run_infer("chat", model_dir, *options, "--seed", 5, input="fox\ndog\n").stdout != one
