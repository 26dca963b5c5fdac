"""Fixtures: a mounted tree, and programs for the hooks of a node."""

from pathlib import Path

import pytest

from tests.support.hook_programs import HookPrograms
from tests.support.layer import Layer


@pytest.fixture
def root(layer: Layer) -> Path:
    """The mounted tree; anybody may write in it."""
    layer.start()
    layer.base.chmod(0o755)
    for parent in layer.base.parents[:2]:
        parent.chmod(0o755)
    layer.mountpoint.chmod(0o777)
    return layer.mountpoint


@pytest.fixture
def hooks(tmp_path: Path) -> HookPrograms:
    """Programs around a change of the role."""
    return HookPrograms(tmp_path)
