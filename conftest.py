"""Which tests the quick lane leaves out: rooms that run whole commands, and tests marked so. How properties run."""

import pytest
from hypothesis import settings

# A busy machine is no defect: an example of a property may take as long as it takes.
settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")

WHOLE_ROOMS = {"commands", "contract", "conversation", "engines", "execution", "judging", "running"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them."""
    for item in items:
        if WHOLE_ROOMS & set(item.path.parts):
            item.add_marker(pytest.mark.whole)
