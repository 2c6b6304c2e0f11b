"""Tables for terminals and for Markdown."""

from collections.abc import Callable, Sequence

Rows = Sequence[Sequence[str]]


def plain_table(head: Sequence[str], rows: Rows) -> str:
    """Columns as wide as their longest cell, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in _columns(row, widths))
        for row in (head, *rows)
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _columns(row: Sequence[str], widths: Sequence[int]) -> enumerate[tuple[str, int]]:
    return enumerate(zip(row, widths, strict=True))


def markdown_table(head: Sequence[str], rows: Rows) -> str:
    """A table of GitHub's Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


TABLES: dict[str, Callable[[Sequence[str], Rows], str]] = {"table": plain_table, "markdown": markdown_table}
