"""Mending on a mirror: a spoilt file is what it was, unless entries have come to it meanwhile."""

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from fusejournal.disk import failpoints
from fusejournal.errors import ConflictError, FusejournalError, UsageError
from fusejournal.operations import Operation, Setxattr, Write
from fusejournal.replication.mending import Mending
from fusejournal.types import Fid
from tests.support.trees import difference, image
from tests.support.volumes import SOMEBODY, OpenVolume, open_volume
from tests.support.xattrs import make_acl

_DATA = bytes(range(256)) * 4


class _Kernel:
    """A kernel's cache that is told what to forget."""

    def __init__(self) -> None:
        self.told: list[Operation] = []

    def invalidate(self, operation: Operation) -> None:
        self.told.append(operation)

    def recall(self) -> None:
        """No delegations."""


def _fill(opened: OpenVolume) -> Fid:
    fid = opened.create("file", _DATA)
    opened.volume.commit(Setxattr(fid, b"user.kept", b"v"), SOMEBODY)
    opened.volume.commit(
        Setxattr(fid, b"system.posix_acl_access", make_acl(6, 4, 4, 0, 5)), SOMEBODY
    )
    return fid


def _pieces(opened: OpenVolume, fid: Fid) -> list[dict[str, Any]]:
    """Returns the file as it is, in pieces as a scrub tells them."""
    path = opened.backing / "file"
    found = os.stat(path)
    common = {
        "fid": fid,
        "seq": opened.volume.catalog.applied_seq,
        "mtime_ns": found.st_mtime_ns,
    }
    xattrs = [
        (base64.b64encode(name).decode(), base64.b64encode(os.getxattr(path, name)).decode())
        for name in (b"user.kept", b"system.posix_acl_access")
    ]
    attributes = {
        "uid": found.st_uid,
        "gid": found.st_gid,
        "mode": found.st_mode & 0o7777,
        "size": found.st_size,
        "xattrs": xattrs,
    }
    return [
        {**common, "offset": at, "data": base64.b64encode(path.read_bytes()[at:end]).decode()}
        for at, end in ((0, 500), (500, len(_DATA)))
    ] + [{**common, **attributes}]


def _spoil(path: Path) -> None:
    path.write_bytes(b"spoilt" * 400)
    os.removexattr(path, "user.kept")
    os.removexattr(path, "system.posix_acl_access")
    os.setxattr(path, "user.stray", b"s")
    os.chown(path, 3, 4)
    path.chmod(0o1777)


@pytest.mark.mount
async def test_a_spoilt_file_is_what_it_was(tmp_path: Path) -> None:
    with open_volume(tmp_path / "volume") as opened:
        fid = _fill(opened)
        pieces, before = _pieces(opened, fid), image(opened.backing)
        _spoil(opened.backing / "file")
        kernel = _Kernel()
        mending = Mending(opened.volume, kernel)
        head_seq = opened.volume.journal.head_seq
        for piece in pieces:
            assert await mending.mend(piece) == {"ok": True}
        assert not difference(before, image(opened.backing))
        assert opened.volume.journal.head_seq == head_seq
        assert [type(one) for one in kernel.told] == [Write] * 3


@pytest.mark.mount
async def test_whatever_fails_can_be_done_again(tmp_path: Path) -> None:
    with open_volume(tmp_path / "volume") as opened:
        fid = _fill(opened)
        pieces, before = _pieces(opened, fid), image(opened.backing)
        mending = Mending(opened.volume, _Kernel())

        async def mend() -> None:
            for piece in pieces:
                await mending.mend(piece)

        labels: list[str] = []
        _spoil(opened.backing / "file")
        failpoints.listen(labels.append)
        try:
            await mend()
        finally:
            failpoints.listen(None)
        assert len(set(labels)) >= 8
        for label in set(labels):
            _spoil(opened.backing / "file")
            failpoints.listen(failpoints.PlannedFault(label, 1, "EIO"))
            try:
                with pytest.raises(FusejournalError, match="Input/output error"):
                    await mend()
            finally:
                failpoints.listen(None)
            await mend()
            assert not difference(before, image(opened.backing)), label


@pytest.mark.mount
async def test_later_entries_win(tmp_path: Path) -> None:
    with open_volume(tmp_path / "volume") as opened:
        fid = _fill(opened)
        pieces = _pieces(opened, fid)
        mending = Mending(opened.volume, _Kernel())
        opened.create("another", b"elsewhere")
        await mending.mend(pieces[0])
        opened.volume.commit(Write(fid, 3, None), SOMEBODY, b"later")
        for piece in pieces:
            with pytest.raises(ConflictError):
                await mending.mend(piece)
        assert (opened.backing / "file").read_bytes()[:8] == _DATA[:3] + b"later"
        ahead = {**pieces[0], "seq": opened.volume.catalog.applied_seq + 1}
        with pytest.raises(ConflictError):
            await mending.mend(ahead)
        with pytest.raises(ConflictError):
            await mending.mend({**pieces[0], "fid": 1 << 50})
        opened.volume.fail("a disk failed")
        with pytest.raises(ConflictError, match="a disk failed"):
            await mending.mend(_pieces(opened, fid)[0])


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"fid": 2, "seq": 3},
        {"fid": 2, "seq": 3, "mtime_ns": 0, "data": "?"},
        {"fid": 2, "seq": 3, "mtime_ns": 0, "mode": 1},
        {"fid": "x", "seq": 3, "mtime_ns": 0},
    ],
)
@pytest.mark.mount
async def test_what_is_no_piece_is_refused(tmp_path: Path, request_: dict[str, Any]) -> None:
    with open_volume(tmp_path / "volume") as opened:
        mending = Mending(opened.volume, _Kernel())
        with pytest.raises(UsageError, match="no piece"):
            await mending.mend(request_)
