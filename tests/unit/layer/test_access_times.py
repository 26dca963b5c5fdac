"""Access times without a mount: when they are set, and when they are not."""

import os
import time
from pathlib import Path

import pyfuse3
import pytest

from fusejournal.layer.access_times import AccessTimes
from fusejournal.operations import Create
from fusejournal.types import ROOT_FID
from tests.support.volumes import SOMEBODY, open_volume

_DAY_NS = 24 * 60 * 60 * 10**9


def test_they_are_set_where_they_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda fid, attr_only: told.append(fid))
    with open_volume(tmp_path) as opened:
        volume, file = opened.volume, opened.backing / "file"
        fid = volume.new_fid()
        operation = Create(fid, ROOT_FID, b"file", 0o100644, 0, 0, 0, None)
        volume.commit(operation, SOMEBODY)
        times = AccessTimes(volume)

        def opening(flags: int, atime_ns: int) -> bool:
            """Returns whether that sets it, and then tells the kernel."""
            mtime_ns = file.stat().st_mtime_ns
            os.utime(file, ns=(atime_ns, mtime_ns))
            told.clear()
            times.note_open(fid, flags)
            assert file.stat().st_mtime_ns == mtime_ns
            is_set = file.stat().st_atime_ns != atime_ns
            assert told == [fid] * is_set
            return is_set

        now_ns = time.time_ns()
        for flags in (os.O_RDONLY, os.O_RDWR):
            assert opening(flags, 5)
            assert opening(flags, volume.tree.node(fid).ctime_ns)
            assert not opening(flags, now_ns)
        for flags in (os.O_WRONLY, os.O_NOATIME, os.O_RDWR | os.O_NOATIME):
            assert not opening(flags, 5)
        os.utime(file, ns=(5, now_ns - 3 * _DAY_NS))
        volume.tree.node(fid).ctime_ns = now_ns - 3 * _DAY_NS
        assert not opening(os.O_RDONLY, now_ns - _DAY_NS // 2)
        assert opening(os.O_RDONLY, now_ns - 2 * _DAY_NS)
        times = AccessTimes(volume, frozenset({"strictatime", "nodiratime"}))
        assert opening(os.O_RDONLY, now_ns - _DAY_NS // 2)
        told.clear()
        times.note_open(ROOT_FID, os.O_RDONLY)
        assert not told
        times.follow_mount(is_read_only=True)
        assert not opening(os.O_RDONLY, 5)
        times.follow_mount(is_read_only=False)
        volume.write_errno = 30
        assert not opening(os.O_RDONLY, 5)
