"""How much may be decoded at a time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """At most so many answers at a time, whose prompts and texts have at most `num_tokens` cache columns together."""

    num_rows: int
    num_tokens: int
