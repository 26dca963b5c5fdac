"""The pruning of the journal of a running volume, and of its branches, beside all else that goes on
in its node."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from fusejournal.config import BranchesConfig, StoreConfig
from fusejournal.errors import FusejournalError
from fusejournal.journal.base import JournalBase
from fusejournal.journal.branches import BranchLimits, tend_branches
from fusejournal.node.assemble import open_base
from fusejournal.node.handoffs import Handoffs
from fusejournal.node.journal_limits import PruningRefusedError, install_base
from fusejournal.node.running_role import RunningRole
from fusejournal.replication.peer_record import PeerRecord
from fusejournal.volume.startup import VolumeStartup

log = logging.getLogger(__name__)

_TEND_SECONDS: Final = 3600.0


async def prune_running(
    role: RunningRole,
    handoffs: Handoffs | None,
    startup: VolumeStartup,
    tending: trio.Lock,
    records: Sequence[PeerRecord],
    base: JournalBase,
    config: StoreConfig,
) -> int:
    """Have the journal of a running volume begin after *base*. Returns how many segments went.
    Cancelled, what has begun is done first.

    Args:
        role, handoffs: of the node; None without replication.
        startup: what has opened its volume.
        tending: held by the task that tends sealed segments.
        records: what is known of its peers.
        base: the position from which the journal has its entries then.
        config: how the store is dealt with in which the base's version is.

    Raises StoreError where this node cannot read the base, PruningRefusedError, FusejournalError,
    OSError."""
    volume = startup.volume
    tree = open_base(role.state.directory, base, config)
    # The command that asks for this has read the version itself; an index of its size is not for
    # the layer.
    await trio.to_thread.run_sync(tree.check_there)
    # The state is taken only now, and no other process writes it meanwhile: what it says of a reign
    # that is offered must not be undone.
    async with tending, role.saving:
        is_under_way = handoffs is not None and handoffs.is_under_way
        if is_under_way or role.next is not None:
            raise PruningRefusedError("the role is changing: prune again afterwards")
        acked = {record.name: record.acked_seq for record in records}
        state = role.state
        with trio.CancelScope(shield=True):
            count = await trio.to_thread.run_sync(
                install_base, state, base, startup.page, acked.get
            )
        volume.journal.begin_behind(tree)
    return count


async def keep_branches(state_dir: Path, config: BranchesConfig) -> None:
    """Keep what lost to other histories within its bounds, now and every hour, until cancelled."""
    limits, passed_seconds = BranchLimits(config.keep_bytes, config.keep_days), 0.0
    while True:
        try:
            for branch in await trio.to_thread.run_sync(
                tend_branches, state_dir, limits, passed_seconds
            ):
                log.warning("branch %s is dropped: see [branches]", branch.name)
        except (FusejournalError, OSError) as error:
            log.warning("branches are not looked after: %s", error)
        passed_seconds = _TEND_SECONDS
        await trio.sleep(_TEND_SECONDS)
