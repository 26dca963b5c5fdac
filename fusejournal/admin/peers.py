"""The peers of a volume, mounted or not: a running layer is asked; else their file is changed."""

from fusejournal.address import Address
from fusejournal.control.client import ask
from fusejournal.errors import NotRunningError
from fusejournal.node.holding import hold_volume
from fusejournal.node.state_dir import VolumeState
from fusejournal.replication.peer_info import describe
from fusejournal.replication.peer_replies import PeerAdded, PeerChanged, PeerList, PeerRemoved
from fusejournal.replication.peers import PeerBook


def add_peer(
    state: VolumeState, name: str, address: Address, *, standby: bool = False
) -> PeerAdded:
    """Ships the volume to the node that listens at *address*, and calls it *name*; *standby*: only
    once this node is the primary. Raises UsageError, VolumeBusyError, FusejournalError."""
    try:
        reply = ask(state.directory, "peer-add", name=name, address=str(address), standby=standby)
        return PeerAdded.from_json(reply)
    except NotRunningError:
        with hold_volume(state):
            book = PeerBook.load(state.directory)
            added = book.add(name, address, standby=standby)
            book.save()
        return PeerAdded(added=added, peer=describe(book.get(name)))


def remove_peer(state: VolumeState, name: str) -> PeerRemoved:
    """Forgets a peer and its certificate. Raises UnknownPeerError, VolumeBusyError,
    FusejournalError."""
    try:
        return PeerRemoved.from_json(ask(state.directory, "peer-remove", name=name))
    except NotRunningError:
        with hold_volume(state):
            book = PeerBook.load(state.directory)
            removed = describe(book.get(name))
            book.remove(name)
            book.save()
        return PeerRemoved(peer=removed)


def list_peers(state: VolumeState) -> PeerList:
    """Returns the peers. Raises FusejournalError."""
    try:
        return PeerList.from_json(ask(state.directory, "peer-list"))
    except NotRunningError:
        book = PeerBook.load(state.directory)
        return PeerList(peers=tuple(describe(one) for one in book.list()))


def pause_peer(state: VolumeState, name: str) -> PeerChanged:
    """Ships nothing to a peer until :func:`resume_peer`. Raises UnknownPeerError, UsageError,
    VolumeBusyError, FusejournalError."""
    return _set_paused(state, name, True)


def resume_peer(state: VolumeState, name: str) -> PeerChanged:
    """Ends the pause of a peer, and tries again what was thought to need a full copy. Raises
    UnknownPeerError, VolumeBusyError, FusejournalError."""
    return _set_paused(state, name, False)


def _set_paused(state: VolumeState, name: str, paused: bool) -> PeerChanged:
    try:
        reply = ask(state.directory, "peer-pause" if paused else "peer-resume", name=name)
        return PeerChanged.from_json(reply)
    except NotRunningError:
        with hold_volume(state):
            book = PeerBook.load(state.directory)
            changed = book.pause(name) if paused else book.resume(name)
            book.save()
        return PeerChanged(changed=changed, peer=describe(book.get(name)))
