"""How the inputs of MBPP+ become Python again: JSON has no tuples, sets or complex numbers.

Each task's steps are (argument, depth, type): what lies `depth` lists deep in the argument at that position (None: in
every argument) becomes that type. Facts about EvalPlus's data, from its reader.
"""

Step = tuple[int | None, int, str]


def _tasks(numbers: str, *steps: Step) -> dict[str, tuple[Step, ...]]:
    return {f"Mbpp/{number}": steps for number in numbers.split()}


STEPS_BY_TASK: dict[str, tuple[Step, ...]] = {
    **_tasks(
        "2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809", (None, 0, "tuple")
    ),
    **_tasks("63 64 70 94 120 237 272 299 400 409 417 438 473 614 780", (None, 1, "tuple")),
    **_tasks("75 413 444 753", (0, 1, "tuple")),
    **_tasks("106 750", (1, 0, "tuple")),
    **_tasks("115", (0, 1, "set")),
    **_tasks("124", (0, 0, "float"), (1, 0, "complex")),
    **_tasks("250 307 405 446 617 720 763 808", (0, 0, "tuple")),
    **_tasks("259 278 401 445", (None, 1, "tuple"), (None, 0, "tuple")),
    **_tasks("722", (0, 1, "tuple")),
    **_tasks("252", (0, 0, "complex")),
    **_tasks("580 615 791", (None, -1, "tuple")),
}
