"""One answer while it grows: what it was asked, how it may end, what it has said."""

from random import Random

from mft_infer.decoding.detokenizer import Detokenizer


class Answer:
    """The answer to one prompt, token by token.

    `finish_reason` is None until a stop token or a stop text ("stop"), `max_new_tokens` ("length") or `fail` ("error")
    ends it. `logprobs` are natural logarithms, one for each of `token_ids`, if they were given.
    """

    def __init__(
        self,
        prompt_ids: list[int],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        stop_texts: tuple[str, ...],
        random: Random,
        detokenizer: Detokenizer,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.max_new_tokens = max_new_tokens
        self.random = random
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason: str | None = None
        self.error: str | None = None
        self._stop_ids = stop_ids
        self._stop_texts = stop_texts
        self._detokenizer = detokenizer

    @property
    def ids(self) -> list[int]:
        """The prompt and the answer so far."""
        return self.prompt_ids + self.token_ids

    @property
    def num_certain(self) -> int:
        """Characters of the text that no stop text will take away."""
        if self.finish_reason is not None:
            return len(self.text)
        begun = (
            length for stop in self._stop_texts for length in range(1, len(stop)) if self.text.endswith(stop[:length])
        )
        return len(self.text) - max(begun, default=0)

    def push(self, token_id: int) -> None:
        """Take in the next token."""
        self.token_ids.append(token_id)
        if token_id in self._stop_ids:
            self._add(self._detokenizer.flush())
            self.finish_reason = "stop"
            return
        self._add(self._detokenizer.push(token_id))
        if self.finish_reason is None and len(self.token_ids) >= self.max_new_tokens:
            self._add(self._detokenizer.flush())
            self.finish_reason = self.finish_reason or "length"

    def fail(self, error: str) -> None:
        """End the answer with an error in place of its text."""
        self.text, self.finish_reason, self.error = "", "error", error

    def _add(self, text: str) -> None:
        """Append text; the first stop text in it ends the answer before itself."""
        start = max(0, len(self.text) - max(map(len, self._stop_texts), default=0))
        self.text += text
        places = [place for stop in self._stop_texts if (place := self.text.find(stop, start)) >= 0]
        if places:
            self.text = self.text[: min(places)]
            self.finish_reason = "stop"
