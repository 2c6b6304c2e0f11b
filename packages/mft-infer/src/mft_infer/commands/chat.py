"""A conversation: user messages come in, answers stream out, the history grows until it is reset."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import click

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.batch import Batch
from mft_infer.decoding.detokenizer import Detokenizer
from mft_infer.decoding.sampling import request_random
from mft_infer.encoding.chat_template import Conversation
from mft_infer.errors import InferError, PromptError
from mft_infer.model.generation_defaults import with_defaults
from mft_infer.model.language_model import LanguageModel, load_language_model
from mft_infer.settings import AnswerSettings, ModelSettings, PromptSettings


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """The options of `mft-infer chat`, under the names that they have there."""

    model: ModelSettings
    answer: AnswerSettings
    prompt: PromptSettings
    given: frozenset[str] = frozenset()
    generation_config: bool = False


def chat_on_console(model: str, options: ChatOptions) -> None:
    """Talk over stdin and stdout: with a prompt and commands on a terminal, one message a line from a pipe."""
    language_model = load_language_model(model, options.model)
    defaults = language_model.generation_defaults
    answer = with_defaults(options.answer, defaults, given=options.given, wanted=options.generation_config)
    options = replace(options, answer=answer)
    is_interactive = sys.stdin.isatty()
    if is_interactive:
        click.echo("/reset starts anew, /exit or Ctrl-D ends, Ctrl-C stops an answer", err=True)
    lines = _typed_lines() if is_interactive else (line.rstrip("\r\n") for line in sys.stdin)
    chat(language_model, options, lines, _write, is_interactive=is_interactive)


def chat(
    language_model: LanguageModel,
    options: ChatOptions,
    lines: Iterable[str],
    write: Callable[[str], None],
    *,
    is_interactive: bool,
) -> None:
    """Answer each of `lines` through `write`, each answer ended by a newline; blank lines are passed over.

    Only an interactive chat knows the commands, and lives on when the history no longer fits the context.
    """
    opening = [{"role": "system", "content": options.prompt.system}] if options.prompt.system is not None else []
    history = list(opening)
    for turn, line in enumerate(lines):
        if is_interactive and line.strip() == "/exit":
            return
        if is_interactive and line.strip() == "/reset":
            history = list(opening)
            continue
        if not line.strip():
            continue
        asked = [*history, {"role": "user", "content": line}]
        try:
            sequence = _new_sequence(language_model, asked, options, turn)
        except PromptError as error:
            refusal = InferError(error.reason, fix="start anew with /reset or say less")
            if not is_interactive:
                raise refusal from error
            refusal.show()
            continue
        _answer(language_model, sequence, options, write)
        history = [*asked, {"role": "assistant", "content": sequence.text}]


def _new_sequence(
    language_model: LanguageModel, messages: list[dict[str, str]], options: ChatOptions, turn: int
) -> Answer:
    """The answer to `messages`, before its first token."""
    arguments = dict(options.prompt.template_argument)
    ids = language_model.encoder.encode_conversation(Conversation(messages, arguments=arguments))
    limit = language_model.context_length
    if limit is not None and len(ids) >= limit:
        raise PromptError(
            f"the conversation has {len(ids)} tokens, the model's context has {limit} for it and the answer"
        )
    return Answer(
        ids,
        max_new_tokens=min(options.answer.max_new_tokens, (limit or sys.maxsize) - len(ids)),
        stop_ids=language_model.stop_ids | language_model.token_ids(options.answer.stop_token),
        stop_texts=options.answer.stop,
        random=request_random(options.answer.seed, "chat", turn),
        detokenizer=Detokenizer(language_model.tokenizer),
    )


def _answer(
    language_model: LanguageModel, sequence: Answer, options: ChatOptions, write: Callable[[str], None]
) -> None:
    """Write the answer as it grows; Ctrl-C ends it where it is."""
    num_written = 0
    try:
        batch = Batch(language_model.forward, options.answer)
        batch.add([[sequence]])
        while True:
            text = sequence.text[num_written:]
            num_written = len(sequence.text)
            if text:
                write(text)
            if not batch.answers:
                break
            batch.step()
    except KeyboardInterrupt:
        write("\n")
        click.echo("(stopped)", err=True)
        return
    write("\n")
    if sequence.finish_reason == "length":
        click.echo("(cut off: --max-new-tokens or the model's context is used up)", err=True)


def _write(text: str) -> None:
    click.echo(text, nl=False)


def _typed_lines() -> Iterator[str]:
    """The lines typed at a prompt, with editing and recall where the platform has readline."""
    with suppress(ImportError):
        import readline  # noqa: F401  its import gives input() line editing
    while True:
        try:
            if sys.stdout.isatty():
                yield input("> ")
            else:
                click.echo("> ", nl=False, err=True)
                yield input()
        except EOFError:
            click.echo(err=True)
            return
