"""Fixtures for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.layer import Layer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where nothing can be mounted, say so rather than fail."""
    reason = "" if os.geteuid() == 0 and os.path.exists("/dev/fuse") else "needs root and /dev/fuse"
    for item in items:
        if reason and item.get_closest_marker("mount"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Layer]:
    """A volume that is not started yet."""
    with Layer(tmp_path) as one:
        yield one
