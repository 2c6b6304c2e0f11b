"""The order of work: new prompts take the place of finished answers, within a budget of rows and of tokens."""

from collections import deque
from collections.abc import Iterator

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.batch import PREFILL_TOKENS, Batch
from mft_infer.decoding.budget import Budget
from mft_infer.decoding.forward import Forward
from mft_infer.decoding.memory import NOT_ENOUGH, is_out_of_memory, tell_less
from mft_infer.settings import AnswerSettings

# Prompts are taken in order of length within windows of so many batches.
WINDOW_BATCHES = 8
# New prompts come in when at least this share of the rows is free: reading them costs a forward.
REFILL_SHARE = 8
# Room for growth, in tokens, that a new row needs beside its prompt.
GROWTH_TOKENS = 32


def decode_all(
    forward: Forward, groups: list[list[Answer]], settings: AnswerSettings, budget: Budget
) -> Iterator[Answer]:
    """All answers as they end. The answers of a group have one prompt, which is read once for as many as fit."""
    groups = [
        group[start : start + budget.num_rows] for group in groups for start in range(0, len(group), budget.num_rows)
    ]
    window = WINDOW_BATCHES * budget.num_rows
    # Longest first: if memory does not suffice, that shows at once.
    ordered = [
        group
        for start in range(0, len(groups), window)
        for group in sorted(groups[start : start + window], key=lambda group: -len(group[0].ids))
    ]
    yield from _Schedule(forward, ordered, settings, budget).run()


class _Schedule:
    def __init__(self, forward: Forward, groups: list[list[Answer]], settings: AnswerSettings, budget: Budget) -> None:
        self._waiting = deque(groups)
        self._num_rows = budget.num_rows
        self._max_tokens = budget.num_tokens
        self._forward = forward
        self._settings = settings
        self._batch = Batch(forward, settings)

    def run(self) -> Iterator[Answer]:
        while self._waiting or self._batch.answers:
            entering = self._entering()
            try:
                ended = self._batch.add(entering) if entering else self._batch.step()
                failure = None
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error)
            # Out of the except clause, as the traceback holds the tensors of the failed step.
            if failure is not None:
                ended = self._start_anew(entering)
            yield from ended
            self._put_back(self._num_surplus())

    def _entering(self) -> list[list[Answer]]:
        """The groups to be added now, none if it is not the time."""
        active = len(self._batch.answers)
        room = self._num_rows - active
        if active and (not self._batch.can_grow or room * REFILL_SHARE < self._num_rows):
            return []
        entering: list[list[Answer]] = []
        num_rows, width, longest = active, self._batch.width, 0
        while self._waiting:
            group = self._waiting[0]
            length = len(group[0].ids)
            num_rows += len(group)
            width, longest = max(width, length), max(longest, length)
            fits = num_rows <= self._num_rows and num_rows * (width + GROWTH_TOKENS) <= self._max_tokens
            is_one_piece = (len(entering) + 1) * longest <= PREFILL_TOKENS
            if (entering and not is_one_piece) or (not fits and (entering or active)):
                break
            entering.append(self._waiting.popleft())
        return entering

    def _num_surplus(self) -> int:
        """How many rows are over the budget; one row may always stay."""
        batch = self._batch
        if batch.num_tokens <= self._max_tokens:
            return 0
        return len(batch.answers) - max(1, self._max_tokens // batch.width)

    def _put_back(self, count: int) -> None:
        """Let the youngest answers wait; they will be read again as far as they have come."""
        if count > 0:
            self._waiting.extendleft([answer] for answer in reversed(self._batch.take(count)))

    def _start_anew(self, entering: list[list[Answer]]) -> list[Answer]:
        """After memory ran out: halve the budget and read again all that was under way; one alone fails."""
        joined = self._batch.answers
        answers = joined + [answer for group in entering for answer in group if answer not in joined]
        under_way = [answer for answer in answers if answer.finish_reason is None]
        if len(under_way) == 1 and len(answers) == 1:
            under_way[0].fail(NOT_ENOUGH)
            return answers
        num_tokens = len(answers) * max(len(answer.ids) for answer in answers)
        self._max_tokens = min(self._max_tokens, num_tokens) // 2
        tell_less(self._max_tokens)
        self._batch = Batch(self._forward, self._settings)
        self._waiting.extendleft([answer] for answer in reversed(under_way))
        return [answer for answer in answers if answer.finish_reason is not None]
