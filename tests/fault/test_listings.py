"""A backing lists every name on a descriptor that is kept, on every kind of file system."""

import os
from pathlib import Path

import pytest

from tests.support.filesystems import filesystem
from tests.support.volumes import open_volume

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_kept_descriptor_lists_what_came_after_it_was_opened(tmp_path: Path, kind: str) -> None:
    """So a recovery puts a file aside in a directory that it has open, and the import comes after
    it."""
    with filesystem(kind, tmp_path, "disk", 320) as disk, open_volume(disk) as opened:
        tree = opened.volume.tree
        directory = opened.mkdir("directory")
        assert list(tree.names(directory)) == []
        for number in range(3):
            behind = os.open(opened.backing / "directory", os.O_RDONLY)
            os.mknod(b"%d" % number, 0o600, dir_fd=behind)
            os.close(behind)
            assert sorted(tree.names(directory)) == [b"%d" % one for one in range(number + 1)]
