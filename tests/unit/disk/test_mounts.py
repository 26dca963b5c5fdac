"""Places of a mount that are refused."""

from pathlib import Path

import pytest

from fusejournal.disk.mounts import check_places
from fusejournal.errors import MountError


def test_a_mountpoint_that_is_not_there_or_no_directory(tmp_path: Path) -> None:
    mountpoint = tmp_path / "not there"
    places = tmp_path / "backing", mountpoint, tmp_path / "state"
    with pytest.raises(MountError, match=f"is not there: mkdir -p '{mountpoint}'"):
        check_places(*places)
    mountpoint.touch()
    with pytest.raises(MountError, match="is not a directory"):
        check_places(*places)
