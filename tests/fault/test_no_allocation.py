"""A file system that can neither allocate nor punch nor zero, as NFS of version 3: a mirror or a
target on it has the same bytes, and gets there also where it is killed or refused in between. A
primary on it refuses its callers, as it would without a layer."""

import errno
import os
from pathlib import Path

import pytest

from fusejournal.disk import failpoints
from fusejournal.file_operations import (
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    FALLOCATE_FLAGS,
    Fallocate,
)
from fusejournal.native import kernel
from fusejournal.operations import Truncate
from fusejournal.types import Seq
from tests.support.losses import rebuild_stopped
from tests.support.trees import difference, image
from tests.support.volumes import SOMEBODY, OpenVolume, open_volume

pytestmark = pytest.mark.mount

_PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
_MIB = 1 << 20


def _refuse(patched: pytest.MonkeyPatch, number: int, *flags: int) -> None:
    """The system call is as on a file system that refuses it, with these *flags* or all, for the
    files of a tree."""
    original = kernel.fallocate

    def fallocate(fd: int, how: int, offset: int, length: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        is_of_tree = "/backing/" in path or "/target" in path
        if is_of_tree and (not flags or how in flags):
            raise OSError(number, os.strerror(number))
        original(fd, how, offset, length)

    patched.setattr(kernel, "fallocate", fallocate)


@pytest.fixture(params=[errno.EOPNOTSUPP, errno.ENOSYS])
def no_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    _refuse(monkeypatch, request.param)


def _allocate(opened: OpenVolume) -> None:
    for flags in sorted(FALLOCATE_FLAGS):
        fid = opened.create(f"file{flags}", b"content" * 500_000)
        opened.volume.commit(Fallocate(fid, flags, 5, 2 * _MIB, None), SOMEBODY)
        opened.volume.commit(Fallocate(fid, flags, 3 * _MIB, 2 * _MIB, 0o640), SOMEBODY)
    hollow = opened.create("hollow", b"x")
    opened.volume.commit(Truncate(hollow, 1 << 40, None), SOMEBODY)
    opened.volume.commit(Fallocate(hollow, _PUNCH, 0, 1 << 40, None), SOMEBODY)
    opened.volume.commit(Truncate(hollow, 5, None), SOMEBODY)


def test_a_target_has_the_same_bytes(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with open_volume(tmp_path) as opened:
        _allocate(opened)
        uuid = opened.volume.journal.uuid
    _refuse(request.getfixturevalue("monkeypatch"), errno.EOPNOTSUPP)
    rebuild_stopped(tmp_path, uuid, "apply.fallocate", 3)


@pytest.mark.usefixtures("no_way")
def test_a_caller_is_refused(tmp_path: Path) -> None:
    with open_volume(tmp_path) as opened:
        assert not any(opened.volume.space_ways.has(flags) for flags in FALLOCATE_FLAGS)


def test_what_cannot_be_tried_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_volume(tmp_path) as opened:
        ways = opened.volume.space_ways
        with monkeypatch.context() as patched:
            _refuse(patched, errno.ENOSPC)
            assert ways.has(_PUNCH)
        with monkeypatch.context() as patched:
            _refuse(patched, errno.EOPNOTSUPP)
            assert not ways.has(_PUNCH)
        assert not ways.has(_PUNCH)
        assert ways.has(0)


def test_what_stops_half_way_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range that may be half empty already is filled with zeros; where that is refused, too, the
    volume stops."""
    with open_volume(tmp_path) as opened:
        fid = opened.create("file", b"x" * 3 * _MIB)
        _refuse(monkeypatch, errno.EIO)
        opened.volume.commit(Fallocate(fid, _PUNCH, 10, 2 * _MIB, None), SOMEBODY)
        content = (opened.backing / "file").read_bytes()
        assert content == b"x" * 10 + bytes(2 * _MIB) + b"x" * (_MIB - 10)
        assert opened.volume.failure is None
        failpoints.listen(failpoints.PlannedFault("apply.fallocate.zeros", 2, "EIO"))
        try:
            with pytest.raises(OSError, match="half zeroed"):
                opened.volume.commit(Fallocate(fid, _PUNCH, 0, 3 * _MIB, None), SOMEBODY)
        finally:
            failpoints.listen(None)
        assert opened.volume.failure is not None


def test_what_is_refused_at_once_leaves_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_volume(tmp_path) as opened:
        fid = opened.create("file", b"content")
        before = image(opened.backing)
        _refuse(monkeypatch, errno.EPERM, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE)
        with pytest.raises(PermissionError):
            opened.volume.commit(Fallocate(fid, FALLOC_ZERO_RANGE, 3, 9000, None), SOMEBODY)
        assert not difference(image(opened.backing), before)
        assert opened.volume.failure is None
        monkeypatch.undo()
        seq = opened.volume.commit(Fallocate(fid, FALLOC_ZERO_RANGE, 3, 9000, None), SOMEBODY)
        assert seq == Seq(opened.volume.journal.head_seq)
