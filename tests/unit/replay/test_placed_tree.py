"""Targets of a replay whose directories lie deeper than there are descriptors."""

from pathlib import Path

import pytest

from fusejournal.operations import Create, Link, Mkdir
from fusejournal.types import ROOT_FID, Fid
from tests.support.trees import difference, image, rebuild
from tests.support.volumes import SOMEBODY, OpenVolume, open_volume

pytestmark = pytest.mark.mount
_DEPTH = 600


def _make_chain(volume: OpenVolume, first: bytes) -> Fid:
    """Makes directories, each in the one before. Returns the last."""
    parent = ROOT_FID
    for name in (first, *(b"d",) * (_DEPTH - 1)):
        fid = volume.volume.new_fid()
        volume.volume.commit(Mkdir(fid, parent, name, 0o755, 0, 0, None, None), SOMEBODY)
        parent = fid
    return parent


def test_links_between_directories_far_below(tmp_path: Path) -> None:
    """An operation that needs two directories has both, however long the ways to them are."""
    with open_volume(tmp_path) as volume:
        one, two = _make_chain(volume, b"one"), _make_chain(volume, b"two")
        fid = volume.volume.new_fid()
        volume.volume.commit(Create(fid, one, b"f", 0o100644, 0, 0, 0, None), SOMEBODY)
        volume.volume.commit(Link(fid, two, b"g"), SOMEBODY)
        uuid = volume.volume.journal.uuid
    target = tmp_path / "target"
    target.mkdir()
    rebuild(tmp_path / "state", target, uuid)
    assert not (found := difference(image(tmp_path / "backing"), image(target))), found[:500]
