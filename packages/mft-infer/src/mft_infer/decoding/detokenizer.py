"""Text from tokens one at a time, never half a character."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns the new tokens of one answer into text, without special tokens.

    Tokens are decoded after other text, as some tokenizers drop a space at the beginning of a text and the answer does
    not begin one. Characters whose bytes are not all there yet are held back.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = tokenizer.encode("a", add_special_tokens=False)
        # Tokens [start, done) are context whose text is out; of the text after them, `sent` characters are out.
        self._start, self._done, self._sent = 0, len(self._ids), 0

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before."""
        self._ids.append(token_id)
        text = self._pending_text()
        certain = text.rstrip(REPLACEMENT)
        new = certain[self._sent :]
        self._sent = max(self._sent, len(certain))
        if certain and certain == text:
            self._start, self._done, self._sent = self._done, len(self._ids), 0
        return new

    def flush(self) -> str:
        """The text held back, as it stands when no token follows."""
        return self._pending_text()[self._sent :]

    def _pending_text(self) -> str:
        context = self._decode(self._ids[self._start : self._done])
        return self._decode(self._ids[self._start :])[len(context) :]

    def _decode(self, ids: list[int]) -> str:
        text: Any = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
