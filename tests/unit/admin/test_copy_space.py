"""A copy of a tree that cannot fit is refused before anything is moved."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fusejournal.admin import copy_space
from fusejournal.admin.copy_space import check_source, check_target
from fusejournal.node.disk_space import DiskSpace
from fusejournal.roles.rejoin import RejoinError
from fusejournal.types import Seq
from fusejournal.versions.manifest import Version
from fusejournal.versions.place import StorePlace
from tests.support.objects import MemoryStore
from tests.unit.versions.test_missing_blocks import make_version

_MB = 1_000_000


def _has_free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(copy_space, "disk_space", lambda _: DiskSpace(count, 1 << 40))


def _of(content_bytes: int) -> Version:
    return replace(make_version(MemoryStore()), content_bytes=content_bytes)


def test_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, warned = StorePlace(str(tmp_path), "id"), list[str]()
    _has_free(monkeypatch, 50 * _MB)
    words = "has 51.0 MB of contents, and .* has 50.0 MB free: nothing was copied"
    with pytest.raises(RejoinError, match=words):
        check_target(tmp_path, place, _of(51 * _MB), None, warned.append)
    assert not warned
    check_target(tmp_path, place, _of(51 * _MB), _of(49 * _MB), warned.append)
    assert not warned
    check_target(tmp_path, place, _of(30 * _MB), None, warned.append)
    (line,) = warned
    assert "may not fit: it takes up to 30.0 MB" in line
    assert "which has 20.0 MB for it" in line
    check_target(tmp_path, StorePlace("s3://away/there", "id"), _of(30 * _MB), None, warned.append)
    assert len(warned) == 1


def test_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [tmp_path / f"{first}.seg" for first in (1, 101, 201)]
    for path in segments:
        path.touch()
        os.truncate(path, 20 * _MB)
    _has_free(monkeypatch, 19 * _MB)

    def check(known: int, place: StorePlace | None = None) -> None:
        check_source(tmp_path, tmp_path, place, segments, Seq(known))

    with pytest.raises(RejoinError, match=r"takes up to 40\.0 MB in .*, which has 19\.0 MB free"):
        check(0)
    with pytest.raises(RejoinError, match=r"takes up to 20\.0 MB"):
        check(100)
    check(200)  # it is of before the newest segment
    check(0, StorePlace("s3://away/there", "id"))
    _has_free(monkeypatch, 40 * _MB)
    check(0)
