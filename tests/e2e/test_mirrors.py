"""Mirrors of a primary, three nodes in network namespaces: what is done on one is there on the
others, the same in everything, and nobody else changes it there."""

from pathlib import Path

import pytest

from tests.support import sources
from tests.support.mirrors import check_equal, started
from tests.support.network import Cable

pytestmark = pytest.mark.mount


_FAR = Cable(delay_seconds=0.05, loss=0.02)
_SLOW = Cable(rate_mbit=10)


@pytest.mark.parametrize(
    ("cables", "cascade"),
    [((None, None), True), ((_FAR, _SLOW), False)],
    ids=["a mirror of a mirror", "bad cables"],
)
def test_a_source_tree_unpacked_built_and_deleted(
    tmp_path: Path, cables: tuple[Cable | None, ...], cascade: bool
) -> None:
    archive = tmp_path / "sources.tar"
    sources.make_archive(archive)
    with started(tmp_path, *cables, cascade=cascade) as (primary, *mirrors):
        for name in ("kept", "deleted"):
            place = primary.mountpoint / name
            sources.unpack(archive, place)
            sources.build(place)
        check_equal(primary, *mirrors)
        sources.clean(primary.mountpoint / "deleted")
        check_equal(primary, *mirrors)
        for node in (primary, *mirrors):
            node.stop()
