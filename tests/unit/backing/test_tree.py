"""The demands on a backing."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from fusejournal.backing.fid_tag import FID_XATTR, pack_tag
from fusejournal.backing.probe import probe
from fusejournal.disk.syscalls import handle_of
from fusejournal.errors import BackingError
from fusejournal.types import ROOT_FID, Fid
from tests.support.volumes import open_volume

_FS_IOC_GETFLAGS = 0x80086601
_FS_CASEFOLD_FL = 0x40000000


def _answer_casefolded(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Have *directory* be one with chattr +F, which few kernels of test machines can make."""
    real, inode = fcntl.ioctl, directory.stat().st_ino

    def ioctl(fd: int, request: int, *rest: Any) -> Any:
        if request == _FS_IOC_GETFLAGS and os.fstat(fd).st_ino == inode:
            return _FS_CASEFOLD_FL.to_bytes(4, "little")
        return real(fd, request, *rest)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)


def test_a_casefolded_backing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name has many spellings there."""
    root_fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        probe(root_fd, tmp_path, read_only=False)
        _answer_casefolded(monkeypatch, tmp_path)
        with pytest.raises(BackingError, match="casefolded"):
            probe(root_fd, tmp_path, read_only=False)
    finally:
        os.close(root_fd)


def test_a_casefolded_directory_in_a_backing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_volume(tmp_path) as opened:
        directory = opened.backing / "folded"
        directory.mkdir()
        _answer_casefolded(monkeypatch, directory)
        with pytest.raises(BackingError, match=f"{directory}.*casefolded"):
            for _ in opened.opening.importer.import_name(ROOT_FID, b"folded"):
                pass
        assert opened.volume.catalog.lookup(ROOT_FID, b"folded") is None


@pytest.mark.parametrize("number", [0, 1 << 63, (1 << 64) - 1])
def test_a_number_that_no_file_has_is_no_tag(tmp_path: Path, number: int) -> None:
    """A fid has 63 bits: the file is a new one."""
    with open_volume(tmp_path) as opened:
        path, tree = opened.backing / "file", opened.volume.tree
        path.touch()
        fd = os.open(path, os.O_RDONLY)
        try:
            for tagged in (Fid(7), Fid(number)):
                os.setxattr(fd, FID_XATTR, pack_tag(tree.uuid, tagged, handle_of(fd)))
                found = tree.probe_name(ROOT_FID, b"file")
                assert found is not None
                is_good = tagged == 7
                assert (found.fid, found.owner) == ((7, tree.uuid) if is_good else (None, None))
        finally:
            os.close(fd)
        for _ in opened.opening.importer.import_name(ROOT_FID, b"file"):
            pass
        fid = opened.volume.catalog.lookup(ROOT_FID, b"file")
        assert fid is not None
        assert 0 < fid < 1 << 63
