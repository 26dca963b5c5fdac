"""The place of a volume's node among others: role, reign, fence, position, and its peers."""

from contextlib import closing
from typing import Any

from fusejournal.admin.peers import list_peers
from fusejournal.admin.source import JournalSource
from fusejournal.admin.status import volume_status
from fusejournal.agent.command_lines import command_line
from fusejournal.agent.fields import Fields
from fusejournal.errors import UsageError
from fusejournal.journal.watermarks import WatermarkPage
from fusejournal.node.state_dir import VolumeState
from fusejournal.node.volume_status import VolumeStatus
from fusejournal.replication.parting import load_parting
from fusejournal.types import Epoch, Position, Seq


def standing(source: JournalSource, _: Fields) -> dict[str, Any]:
    """Returns how the node stands. ``position`` is as EPOCH/SEQ/CHAIN; ``parting`` names the peer
    whose journal parts from this one, where a rejoin is due. Raises FusejournalError, OSError."""
    state = source.state
    if state is None:
        raise UsageError(f"{source.name} is a copy of a journal, and has no role")
    status = volume_status(state)
    position = None
    for entry in source.reader.read(Seq(source.head_seq), Seq(source.head_seq + 1)):
        position = str(Position(Epoch(status.epoch or 0), entry.seq, entry.chain))
    return _standing(state, status, position)


def standing_without_journal(state: VolumeState) -> dict[str, Any]:
    """Returns how a node stands that has no journal yet, as a mirror that is not paired: as
    :func:`standing`, with ``position`` None. Raises FusejournalError, OSError."""
    return _standing(state, volume_status(state), None)


def _standing(state: VolumeState, status: VolumeStatus, position: str | None) -> dict[str, Any]:
    fence = None
    if state.watermarks.exists():
        with closing(WatermarkPage(state.watermarks, state.created_ns)) as page:
            fence = str(page.fence)
    parting = load_parting(state.directory)
    replication = status.replication
    return {
        "role": status.role,
        "state": status.state,
        "uuid": status.uuid,
        "mountpoint": status.mountpoint,
        "degraded": list(status.degraded),
        "troubles": [one.to_json() for one in status.troubles],
        "reign": replication.reign if replication is not None else None,
        "fence": fence,
        "position": position,
        "parting": None if parting is None else {"peer": parting.peer, "reign": str(parting.reign)},
        "replication": None if replication is None else replication.to_json(),
        "peers": [peer.to_json() for peer in list_peers(state).peers],
        "command": command_line("status", state.name),
    }
