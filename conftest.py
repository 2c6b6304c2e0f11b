"""Which tests the quick lane leaves out: those in the rooms that run whole commands, and those marked so themselves."""

import pytest

WHOLE_ROOMS = {"commands", "contract", "conversation", "engines", "execution", "judging", "running"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them."""
    for item in items:
        if WHOLE_ROOMS & set(item.path.parts):
            item.add_marker(pytest.mark.whole)
