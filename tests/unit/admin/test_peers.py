"""The peers of a volume that is not mounted, and marks that cannot be."""

from pathlib import Path

import pytest

from fusejournal.address import Address
from fusejournal.admin.mark import set_mark
from fusejournal.admin.peers import add_peer, list_peers, pause_peer, remove_peer, resume_peer
from fusejournal.errors import NotRunningError, UnknownPeerError, UsageError
from fusejournal.node.state_dir import VolumeState, load_state
from tests.support.nodes import make_volume

_EAST = Address("10.0.0.2", 7710)


@pytest.fixture
def volume(tmp_path: Path) -> VolumeState:
    make_volume(tmp_path / "one", "one")
    return load_state(tmp_path / "one")


def test_a_peer_is_added_paused_and_removed(volume: VolumeState) -> None:
    added = add_peer(volume, "east", _EAST)
    assert added.added
    assert not add_peer(volume, "east", _EAST).added
    assert list(added.to_json()) == ["added", "peer"]
    (peer,) = list_peers(volume).peers
    assert peer == added.peer
    assert (peer.name, peer.address, peer.fingerprint) == ("east", "10.0.0.2:7710", None)
    assert pause_peer(volume, "east").changed
    assert not pause_peer(volume, "east").changed
    assert list_peers(volume).peers[0].paused
    assert resume_peer(volume, "east").changed
    assert remove_peer(volume, "east").peer == peer
    assert list_peers(volume).peers == ()
    with pytest.raises(UnknownPeerError):
        remove_peer(volume, "east")


def test_a_mark_needs_a_name_and_a_layer(volume: VolumeState) -> None:
    with pytest.raises(UsageError, match="reads as a time"):
        set_mark(volume, "yesterday")
    with pytest.raises(NotRunningError):
        set_mark(volume, "before")
