"""The pruning of the journal of a running volume, beside all else that goes on in its node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from fusejournal.config import StoreConfig
from fusejournal.journal.base import JournalBase
from fusejournal.node.assemble import open_base
from fusejournal.node.journal_limits import PruningRefusedError, install_base
from fusejournal.replication.peer_record import PeerRecord
from fusejournal.volume.startup import VolumeStartup

if TYPE_CHECKING:
    from fusejournal.node.node import Node


async def prune_running(
    node: "Node",
    startup: VolumeStartup,
    tending: trio.Lock,
    records: Sequence[PeerRecord],
    base: JournalBase,
    config: StoreConfig,
) -> int:
    """Have the journal of a running node begin after *base*. Returns how many segments went.
    Cancelled, what has begun is done first.

    Args:
        node, startup: the node, and what has opened its volume.
        tending: held by who tends sealed segments.
        records: what is known of its peers.
        base: the position from which the journal has its entries then.
        config: how the store is dealt with in which the base's version is.

    Raises StoreError where this node cannot read the base, PruningRefusedError, FusejournalError,
    OSError."""
    volume = startup.volume
    tree = open_base(node.state.directory, base, config)
    # Who asks for this has read the version itself; an index of its size is not for the layer.
    await trio.to_thread.run_sync(tree.check_there)
    # The state is taken only now, and no other process writes it meanwhile: what it says of a reign
    # that is offered must not be undone.
    async with tending, node.saving:
        if node.handoffs.is_under_way or node.next_role is not None:
            raise PruningRefusedError("the role is changing: prune again afterwards")
        acked = {record.name: record.acked_seq for record in records}
        state = node.state
        with trio.CancelScope(shield=True):
            count = await trio.to_thread.run_sync(
                install_base, state, base, startup.page, acked.get
            )
        volume.journal.begin_behind(tree)
    return count
