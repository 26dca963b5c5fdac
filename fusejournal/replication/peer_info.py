"""Makes of a peer in the book what commands show of it."""

from fusejournal.replication.peers import Peer
from fusejournal.replication.status import PeerInfo
from fusejournal.wire.identity import fingerprint_of


def describe(peer: Peer) -> PeerInfo:
    """Returns a peer as commands show it."""
    return PeerInfo(
        name=peer.name,
        address=None if peer.address is None else str(peer.address),
        fingerprint=None if peer.certificate is None else fingerprint_of(peer.certificate),
        paused=peer.paused,
        needs_copy=peer.needs_copy,
        acked_seq=peer.on_disk_seq,
        return_address=None if peer.return_address is None else str(peer.return_address),
    )
