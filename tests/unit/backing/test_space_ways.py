"""Space that is taken ahead of an allocation."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.backing.space_ways import SpaceWays
from fusejournal.disk import calls, failpoints
from fusejournal.file_operations import FALLOC_KEEP_SIZE, Fallocate
from tests.support.volumes import SOMEBODY, open_volume

_MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_it_is_taken_in_pieces_and_the_size_stays(tmp_path: Path, root: int) -> None:
    with (tmp_path / "file").open("wb") as file:
        pieces = list(SpaceWays(root).take_ahead(file.fileno, 5, 40 * _MIB))
        assert pieces == [False] * (len(pieces) - 1) + [True]
        assert len(pieces) > 1
        found = os.fstat(file.fileno())
        assert found.st_size == 0
        assert found.st_blocks * 512 >= 40 * _MIB


def test_where_it_is_refused_it_ends(tmp_path: Path, root: int) -> None:
    with (tmp_path / "file").open("wb") as file:
        failpoints.listen(failpoints.PlannedFault("space.ahead", 2, "ENOSPC"))
        try:
            assert list(SpaceWays(root).take_ahead(file.fileno, 0, 40 * _MIB)) == [False]
        finally:
            failpoints.listen(None)
        # More than there is, no call begins with.
        assert list(SpaceWays(root).take_ahead(file.fileno, 0, 1 << 60)) == []
        assert os.fstat(file.fileno()).st_blocks * 512 < 40 * _MIB


def test_what_was_taken_is_not_taken_again(tmp_path: Path) -> None:
    with open_volume(tmp_path) as opened:
        fid, seen = opened.create("file"), list[str]()
        failpoints.listen(seen.append)
        try:
            operation = Fallocate(fid, 0, 0, 5000, None)
            with opened.volume.applier.space.taken_ahead(operation):
                opened.volume.commit(operation, SOMEBODY)
            assert "apply.fallocate.take" not in seen
            opened.volume.commit(Fallocate(fid, 0, 5000, 5000, None), SOMEBODY)
            assert "apply.fallocate.take" in seen
        finally:
            failpoints.listen(None)
        assert (opened.backing / "file").stat().st_size == 10_000


def test_a_way_that_the_file_system_lacks(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = SpaceWays(root)
    assert ways.has(FALLOC_KEEP_SIZE)

    def fallocate(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "")

    monkeypatch.setattr(calls, "fallocate", fallocate)
    assert not ways.has(0)
    assert ways.has(FALLOC_KEEP_SIZE)  # as it was found
