"""Fixtures of the tests of a node."""

from pathlib import Path

import pytest


@pytest.fixture
def state_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that has the state directories of volumes, by their names."""
    root = tmp_path / "states"
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(root))
    return root
