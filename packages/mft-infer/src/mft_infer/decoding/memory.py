"""Running out of memory: how it is told from other failures, and what is said of it."""

import click

# What torch raises when memory ends depends on the device.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
NOT_ENOUGH = "the device has not enough memory"


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device had no memory left."""
    return any(text in str(error) for text in OUT_OF_MEMORY)


def tell_less(num_tokens: int) -> None:
    """Say that less is done at a time from here on."""
    click.echo(f"memory ran out: at most {num_tokens} tokens at a time from here on", err=True)
