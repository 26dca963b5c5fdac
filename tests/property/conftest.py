"""The order of the property tests."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what is known to be hard before what chance brings."""
    items.sort(key=lambda item: "test_corpus" not in item.nodeid)
