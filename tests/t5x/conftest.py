"""Tests that run T5X itself, wherever it can be imported; the rest of the suite does without."""

import pytest

try:
    import t5x.trainer  # noqa: F401

    missing = None
except ImportError as error:
    missing = str(error)


def pytest_collection_modifyitems(items):
    if missing is None:
        return
    skip = pytest.mark.skip(reason=f"T5X cannot be imported ({missing}); see docs/t5x.md")
    for item in items:
        if item.get_closest_marker("t5x"):
            item.add_marker(skip)
