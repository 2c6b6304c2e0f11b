"""One line on a terminal that says how far the work is."""

import sys
import time
from collections import Counter

_INTERVAL_SECONDS = 0.2


class Progress:
    """Counts verdicts; shows rate and counts on stderr where that is a terminal. A context manager."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._verdicts: Counter[str] = Counter()
        self._start = time.monotonic()
        self._shown = 0.0
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def count(self, verdict: str) -> None:
        """Takes in one more verdict."""
        self._verdicts[verdict] += 1
        now = time.monotonic()
        if not self._is_terminal or now - self._shown < _INTERVAL_SECONDS:
            return
        self._shown = now
        done = self._verdicts.total()
        counts = ", ".join(f"{name} {number}" for name, number in self._verdicts.most_common())
        rate = done / max(now - self._start, 1e-9)
        sys.stderr.write(f"\r\x1b[K{done} of {self.total}, {rate:.1f}/s: {counts}"[:200])
        sys.stderr.flush()
