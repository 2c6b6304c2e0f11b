"""Numbers of things, as a sentence has them."""


def counted(number: int, noun: str) -> str:
    """`1 problem`, `2 problems`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def verb(number: int, one: str, many: str) -> str:
    """What so many things do: `was` or `were`."""
    return one if number == 1 else many
