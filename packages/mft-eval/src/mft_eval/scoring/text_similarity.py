"""How alike texts are: chrF and BLEU over a whole test set, with sacrebleu's definitions and default settings."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Statistics = tuple[float, ...]
_CHARACTER_ORDER = 6
_BETA_SQUARED = 4
_WORD_ORDER = 4
# The tokens of mteval-v13a, NIST's script: most punctuation stands alone, also a stop or comma beside a letter.
_SPLITS = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


@dataclass(frozen=True, slots=True)
class Measure:
    """A score from 0 to 100 of sums over pairs: `statistics` of one (text, reference), `score` of their sum."""

    statistics: Callable[[str, str], Statistics]
    score: Callable[[Statistics], float]

    def of(self, pairs: Sequence[tuple[str, str]]) -> float:
        """The score of (text, reference) pairs."""
        return self.score(added([self.statistics(*pair) for pair in pairs]))


def added(every: Sequence[Statistics]) -> Statistics:
    """The sums, place by place."""
    return tuple(map(math.fsum, zip(*every, strict=True)))


def chrf_statistics(text: str, reference: str) -> Statistics:
    """For each order, the character n-grams in the text, in the reference and in both, without counting space."""
    left, right = ("".join(side.split()) for side in (text, reference))
    counts: list[float] = []
    for order in range(1, _CHARACTER_ORDER + 1):
        ours, theirs = (Counter(_ngrams(side, order)) for side in (left, right))
        # An order that the reference is too short for says nothing about the text.
        counts += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return tuple(counts)


def chrf_score(statistics: Statistics) -> float:
    """chrF2. Source: M. Popović, chrF: character n-gram F-score, 2015."""
    orders = [statistics[start : start + 3] for start in range(0, len(statistics), 3)]
    counted = [(match / ours, match / theirs) for ours, theirs, match in orders if ours and theirs]
    if not counted:
        return 0.0
    precision, recall = (math.fsum(side) / len(counted) for side in zip(*counted, strict=True))
    if precision + recall == 0:
        return 0.0
    return 100 * (1 + _BETA_SQUARED) * precision * recall / (_BETA_SQUARED * precision + recall)


def bleu_statistics(text: str, reference: str) -> Statistics:
    """Words in the text and in the reference, then for each order the n-grams that match and those of the text."""
    ours, theirs = tokens_13a(text), tokens_13a(reference)
    counts: list[float] = [len(ours), len(theirs)]
    for order in range(1, _WORD_ORDER + 1):
        left, right = (Counter(_ngrams(tuple(side), order)) for side in (ours, theirs))
        counts += [(left & right).total(), left.total()]
    return tuple(counts)


def bleu_score(statistics: Statistics) -> float:
    """BLEU with brevity penalty; orders without a match are smoothed by halves. Source: K. Papineni et al., 2002."""
    num_ours, num_theirs, *counts = statistics
    smoothing, logarithms = 1.0, []
    for match, total in zip(counts[::2], counts[1::2], strict=True):
        if total == 0:
            break
        if match == 0:
            smoothing *= 2
        logarithms.append(math.log(match / total if match else 1 / (smoothing * total)))
    if not logarithms or not any(counts[::2]) or len(logarithms) < _WORD_ORDER:
        return 0.0
    brevity = min(0.0, 1 - num_theirs / num_ours)
    return 100 * math.exp(brevity + math.fsum(logarithms) / _WORD_ORDER)


def exact_statistics(text: str, reference: str) -> Statistics:
    """Whether the two are equal but for space at their ends, and one for the pair."""
    return (float(text.strip() == reference.strip()), 1.0)


def exact_score(statistics: Statistics) -> float:
    """The percentage of equal pairs."""
    return 100 * statistics[0] / statistics[1]


def edit_similarity(text: str, reference: str) -> float:
    """1 less the share of characters to delete and insert, from 0 to 1: twice the longest common subsequence's length
    over both lengths.

    Each character of `text` is one step over a row of bits, one for each character of `reference`.
    Source: H. Hyyrö, Bit-parallel LCS-length computation revisited, 2004.
    """
    if not text or not reference:
        return float(text == reference)
    places: dict[str, int] = {}
    for position, character in enumerate(reference):
        places[character] = places.get(character, 0) | 1 << position
    all_ones = (1 << len(reference)) - 1
    row = all_ones
    for character in text:
        matches = row & places.get(character, 0)
        row = ((row + matches) | (row - matches)) & all_ones
    return 2 * (len(reference) - row.bit_count()) / (len(text) + len(reference))


def tokens_13a(text: str) -> list[str]:
    """Words and punctuation as mteval-v13a cuts them."""
    line = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        line = line.replace(entity, character)
    line = f" {line} "
    for pattern, replacement in _SPLITS:
        line = pattern.sub(replacement, line)
    return line.split()


def _ngrams(sequence: str | tuple[str, ...], order: int) -> list[str | tuple[str, ...]]:
    return [sequence[start : start + order] for start in range(len(sequence) - order + 1)]


MEASURES = {
    "chrf": Measure(chrf_statistics, chrf_score),
    "bleu": Measure(bleu_statistics, bleu_score),
    "exact": Measure(exact_statistics, exact_score),
}
