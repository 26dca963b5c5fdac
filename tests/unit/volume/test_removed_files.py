"""Files that have no name any more and are open: what is done to them, though no entry tells it."""

import errno
import os
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.errors import ShortWriteError
from fusejournal.operations import Write
from tests.support.filesystems import filesystem, fill
from tests.support.volumes import SOMEBODY, open_volume

pytestmark = pytest.mark.mount


def test_a_short_write_to_a_removed_file_changes_its_ctime(tmp_path: Path) -> None:
    """The beginning that was written is a change like any other: a cached content is older."""
    with filesystem("tmpfs", tmp_path, "disk", 1) as disk:
        (disk / "backing").mkdir()
        (tmp_path / "volume").mkdir()
        (tmp_path / "volume" / "backing").symlink_to(disk / "backing")
        with open_volume(tmp_path / "volume") as opened:
            volume = opened.volume
            fid = opened.create("file", b"content")
            opened.usage.everything_is_open = True
            opened.unlink(fid, "file")
            before = volume.tree.node(fid).ctime_ns
            fill(disk / "filler", 100_000)
            with pytest.raises(ShortWriteError) as caught:
                volume.change_orphan(Write(fid, 0, None), SOMEBODY, os.urandom(500_000))
            assert caught.value.written > 0
            assert volume.tree.node(fid).ctime_ns > before
            assert volume.failure is None


def test_half_a_change_of_a_removed_file_fails_the_volume(tmp_path: Path) -> None:
    """A file with a name does that, too: what it has by now is not known."""
    with open_volume(tmp_path) as opened:
        volume = opened.volume
        fid = opened.create("file", b"content")
        opened.usage.everything_is_open = True
        opened.unlink(fid, "file")
        failpoints.listen(failpoints.PlannedFault("apply.write.times", 1, "EIO"))
        try:
            with pytest.raises(OSError, match="could not be set") as caught:
                volume.change_orphan(Write(fid, 0, None), SOMEBODY, b"other")
        finally:
            failpoints.listen(None)
        assert caught.value.errno == errno.EIO
        assert volume.failure is not None
