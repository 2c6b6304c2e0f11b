"""`mft-infer chat`: the history grows, answers stream whole characters, an interrupt ends one answer only."""

import json

import pytest

from mft_infer.commands.chat import ChatOptions, chat
from mft_infer.errors import InferError
from mft_infer.settings import AnswerSettings, ModelSettings, PromptSettings

OPTIONS = ChatOptions(ModelSettings(), AnswerSettings(max_new_tokens=6), PromptSettings())


@pytest.fixture
def talk(language_model):
    """talk(lines, options) are the texts written, one list of pieces for each answer."""

    def run(lines, options=OPTIONS, *, is_interactive=False) -> list[list[str]]:
        answers: list[list[str]] = [[]]

        def write(text: str) -> None:
            if text == "\n" or text.endswith("\n\n"):
                answers.append([])
            else:
                answers[-1].append(text)

        chat(language_model, options, lines, write, is_interactive=is_interactive)
        return answers[:-1]

    return run


def test_each_line_of_a_pipe_is_answered_in_turn(run_infer, model_dir, write_prompts, tmp_path):
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


def test_answers_stream_in_pieces(talk):
    [answer] = talk(["fox"])
    assert len(answer) > 1
    assert "" not in answer


def test_reset_forgets_and_exit_ends(talk):
    first, other, again = talk(["fox", "dog", "/reset", "fox", "/exit", "never"], is_interactive=True)
    assert again == first != other


def test_commands_in_a_pipe_are_messages(talk):
    assert len(talk(["/exit", "fox"])) == 2


def test_an_interrupt_stops_one_answer_and_keeps_the_chat(language_model, capsys):
    pieces: list[str] = []

    def write(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 2:
            raise KeyboardInterrupt

    chat(language_model, OPTIONS, ["fox", "dog"], write, is_interactive=True)
    assert pieces[2] == "\n"
    assert len(pieces) > 4
    assert "(stopped)" in capsys.readouterr().err


def test_a_full_context_is_told_and_the_chat_lives_on(talk, capsys):
    first, second = talk(["fox", "the lazy dog " * 40, "/reset", "fox"], is_interactive=True)
    assert first == second
    assert "the model's context has 96" in capsys.readouterr().err


def test_a_full_context_ends_a_pipe_with_an_error(talk):
    with pytest.raises(InferError, match="context has 96"):
        talk(["the lazy dog " * 40])


def test_a_cut_answer_is_told(talk, capsys):
    talk(["fox"])
    assert "cut off" in capsys.readouterr().err


def test_sampled_chats_repeat_with_the_seed(run_infer, model_dir):
    options = ("--temperature", 1.2, "--max-new-tokens", 8)
    one, same = (run_infer("chat", model_dir, *options, input="fox\ndog\n").stdout for _ in range(2))
    assert one == same
    assert run_infer("chat", model_dir, *options, "--seed", 5, input="fox\ndog\n").stdout != one
