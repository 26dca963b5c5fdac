"""Paths in a volume as people type them."""

import pytest

from fusejournal.admin.volume_path import volume_path
from fusejournal.errors import UsageError


def test_paths() -> None:
    assert volume_path(None, "//a/./b/") == b"a/b"
    assert volume_path(None, "/") == b""
    assert volume_path(None, "bad\udcff") == b"bad\xff"
    with pytest.raises(UsageError):
        volume_path(None, "a/../b")
