"""Fixtures that tests of the wire share."""

from pathlib import Path

import pytest

from fusejournal.wire.identity import Identity, load_or_make


@pytest.fixture
def identities(tmp_path: Path) -> dict[str, Identity]:
    """Three nodes' identities: a listens, b is known to it, c is not."""
    return {name: load_or_make(tmp_path / name, name) for name in "abc"}
