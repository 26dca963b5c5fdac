"""Asking the peers of a primary before its volume is recovered, or takes changes: whether it still
reigns, and for what only they have of its journal (fetch_lost.py)."""

from collections.abc import Callable
from functools import partial

import trio

from fusejournal.journal.journal import Journal
from fusejournal.replication.claims import is_binding
from fusejournal.replication.fetch_lost import FetchedEntries, LostEntryFetcher
from fusejournal.replication.local_node import LocalNode
from fusejournal.types import Reign
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import Claim, HandshakeState, RefusedError

_LOST_PAGE = (
    "the page of watermarks is missing, which would tell whether another node reigns, and these "
    "peers did not answer: {}; mount again when they do, or remove ('fusejournal peer remove') "
    "those that are no more"
)


async def ask_peers(
    local: LocalNode,
    journal: Journal,
    report: Callable[[str], None],
    *,
    system_crash: bool = True,
    lost_page: bool = False,
    reported: set[str] | None = None,
) -> FetchedEntries:
    """Ask the peers of the primary *local*.

    Args:
        local, journal: the primary, and its journal.
        report: is called with a line that says what happens.
        system_crash: entries may be gone: those that peers have are taken back.
        lost_page: nothing but the peers tells whether another node reigns: no change may be taken
            before all have answered.
        reported: what was reported when they were asked before, which is not said again.

    Cancelling leaves in the journal what has come. Raises RefusedError when the node reigns no
    more, FusejournalError, OSError."""
    fence = local.fence
    words = fence.refusal(journal.epoch)
    if words is not None:
        raise RefusedError(RefusalCode.FENCED, words)
    reason = fence.new_epoch_reason(journal.epoch)

    def me() -> HandshakeState:
        reign = fence.due(journal.epoch) or fence.own(journal.epoch)
        if fence.highest_epoch >= reign.epoch and reason is not None:
            # What was overruled need not be told.
            reign = Reign(fence.highest_epoch, 0)
        return local.greeting(journal.uuid, journal, reign, journal.head_seq)

    async def bind(claim: Claim, peer: str) -> str | None:
        if not await is_binding(claim, fence, journal):
            return None
        if claim.reign.epoch > fence.seen.epoch:
            fence.note(claim.reign)
        await fence.make_durable(partial(trio.to_thread.run_sync, local.page.sync))
        return fence.refusal(journal.epoch)

    work = LostEntryFetcher(
        journal,
        me,
        local.config,
        local.identity,
        local.book,
        local.insecure,
        report,
        bind,
        reported if reported is not None else set(),
    )
    if system_crash:
        fetched = await work.run()
    else:
        fetched = await work.look_round(local.config.take_back_seconds if lost_page else None)
    if lost_page and work.unheard:
        words = _LOST_PAGE.format(", ".join(work.unheard))
        fetched = fetched._replace(fenced=Trouble(TroubleKind.LOST_PAGE, words))
    return fetched._replace(new_epoch=reason or fetched.new_epoch)
