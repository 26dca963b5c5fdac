"""Handoffs of a running volume: the primary's, as the control socket asks for them, the target's,
and what a start finds of one that was cut off.

The primary's goes on by itself, without the command that asked for it; the commands start it,
report how far it is and take it back. Used from the event loop's thread."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import trio

from fusejournal.control.requests import seconds_in
from fusejournal.control.server import Command
from fusejournal.errors import (
    FusejournalError,
    HandoffRefusedError,
    UsageError,
)
from fusejournal.node.running_role import RunningRole
from fusejournal.node.state_dir import Offered
from fusejournal.replication.local_node import LocalNode, check_becomes_mirror
from fusejournal.replication.receiver import Receiver
from fusejournal.replication.supervisor import Replication
from fusejournal.roles.hand_over import HandOver, HandOverSeams, ask_outcome
from fusejournal.roles.handoff import Move, Stage
from fusejournal.roles.plan import HandoffProgress
from fusejournal.roles.role import Event, Role
from fusejournal.roles.take_over import TakeOver, TakeOverSeams
from fusejournal.types import Reign
from fusejournal.volume.startup import VolumeStartup
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.wire.frames import Hello
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import RefusedError
from fusejournal.wire.session_connection import SessionConnection

log = logging.getLogger(__name__)

_SECONDS_MAX = 60.0
_ASK_SECONDS = 1.0


class Handoffs:
    """The handoffs from a volume that is served.

    Args:
        role, startup: the volume's role, and what has opened it.
        replication: its replication, by which a target is level.
        serve_held: has the requests served that were held.
        tasks: where one runs that was begun."""

    def __init__(
        self,
        role: RunningRole,
        startup: VolumeStartup,
        replication: Replication,
        serve_held: Callable[[], None],
        tasks: trio.Nursery,
    ) -> None:
        self._role = role
        self._startup = startup
        self._replication = replication
        self._serve_held = serve_held
        self._tasks = tasks
        self._running: HandOver | None = None
        """The newest that was begun here."""
        self._error: FusejournalError | None = None
        """The reason why that one came to nothing."""

    def commands(self) -> dict[str, Command]:
        """Returns the commands of the control socket."""
        return {
            "handoff": self._hand_over,
            "handoff-progress": self._report_progress,
            "handoff-cancel": self._cancel,
        }

    @property
    def is_under_way(self) -> bool:
        """True from the beginning of a handoff from here until it is known what came of it."""
        return self._running is not None and not self._running.stage.is_over

    def degraded(self) -> Iterator[Trouble]:
        """Yields that the target does not report what came of an offer, and what to do."""
        work = self._running
        if work is None or work.stage is not Stage.ASKING:
            return
        name = work.peer.name
        yield Trouble(
            TroubleKind.HANDOFF,
            f"reign {work.reign} was offered to {name}, which does not say whether it has taken "
            f"over: changes wait until it does: have it run; where it is lost for good, stop this "
            f'volume, and mount it again with overrule = "{work.reign}" under [replication]',
        )

    async def _hand_over(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin one; the answer is how far it is."""
        role, replication = self._role, self._replication
        name = role.state.name
        if not role.state.role.takes_changes:
            raise UsageError(f"volume {name} is a mirror: hand over from its primary")
        if self.is_under_way:
            raise HandoffRefusedError(
                f"volume {name} is being handed over already: wait for the end of that"
            )
        check_becomes_mirror(name, role.listens_at)
        seconds = seconds_in(request, "timeout_seconds", _SECONDS_MAX)
        seams = HandOverSeams(
            partial(role.hooks.before, "mirror"),
            partial(role.call_after_hooks, replication),
            self._note,
            self._serve_held,
        )
        work = HandOver(self._startup.volume, replication, str(request.get("peer")), seams)
        self._running, self._error = work, None
        role.hooks.prepare()
        self._tasks.start_soon(self._run, work, seconds)
        return self._progress(work).to_json()

    async def _run(self, work: HandOver, timeout_seconds: float) -> None:
        try:
            reign = await work.run(timeout_seconds)
        except FusejournalError as error:
            log.warning("%s", error)
            self._error = error
            return
        self._role.end_in(Event.DEMOTED, reign)

    async def _report_progress(self, _: dict[str, Any]) -> dict[str, Any]:
        if self._running is None:
            raise UsageError(f"volume {self._role.state.name} is not being handed over")
        return self._progress(self._running).to_json()

    async def _cancel(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._running is not None:
            self._running.cancel()
        return await self._report_progress(request)

    def _progress(self, work: HandOver) -> HandoffProgress:
        is_over = work.stage.is_over and (self._error is not None or self._role.next is not None)
        held = trio.current_time() - work.held_since if work.held_since is not None else 0.0
        return HandoffProgress(
            peer=work.peer.name,
            reign=str(work.reign),
            stage=work.stage.value,
            head_seq=self._startup.volume.journal.head_seq,
            applied_seq=work.applied_seq,
            held_seconds=round(held, 3),
            is_over=is_over,
            reason=str(self._error) if self._error is not None else None,
            exit_code=self._error.exit_code if self._error is not None else 0,
        )

    async def _note(self, reign: Reign | None) -> None:
        work = self._running
        assert work is not None
        offered = Offered(reign, work.peer.name) if reign is not None else None
        await self._role.note_offered(offered)


# -- the target ------------------------------------------------------------------------------------


def make_take_over(
    role: RunningRole, startup: VolumeStartup, replication: Replication, receiver: Receiver
) -> Callable[[SessionConnection, Hello], Awaitable[None]]:
    """Returns what serves a primary that hands over to this mirror (roles/take_over.py). Cancelling
    that before the role is written down leaves all as it was; it raises RefusedError,
    FusejournalError."""
    seams = TakeOverSeams(
        partial(role.hooks.before, "primary"),
        partial(role.call_after_hooks, replication),
        role.become_primary,
        partial(role.end_in, Event.PROMOTED),
    )
    target = TakeOver(startup.volume, replication, receiver, seams)

    async def serve(session: SessionConnection, greeting: Hello) -> None:
        if role.state.role is not Role.MIRROR:
            name = role.state.name
            raise RefusedError(
                RefusalCode.HANDOFF, f"volume {name} cannot take over now: try again"
            )
        await target.serve(session, greeting)

    return serve


# -- a start ---------------------------------------------------------------------------------------


async def learn_outcome(
    role: RunningRole, startup: VolumeStartup, local: LocalNode, report: Callable[[str], None]
) -> Reign | None:
    """Return once it is known what came of the reign that this primary has offered, if it has: one
    that was taken, which is returned, is on the disk as seen. *report* is called with a line of
    what is waited for. Cancelled, the next start asks again. Raises FusejournalError, OSError where
    that cannot be written down."""
    offered = role.state.offered
    if offered is None:
        return None
    journal, peer = startup.volume.journal, local.book.find(offered.peer)
    me = local.greeting(
        journal.uuid, journal, local.fence.own(journal.epoch), journal.head_seq
    )._replace(role="primary")
    step = Move.DECLINED if local.fence.is_overruled(offered.reign) else Move.BROKEN_OFF
    while step is Move.BROKEN_OFF:
        if peer is not None:
            step = await ask_outcome(local, peer, me, offered.reign)
        if step is Move.BROKEN_OFF:
            report(
                f"reign {offered.reign} was offered to {offered.peer}, and whether that has "
                "taken over it alone can tell: waiting for it; where it is lost for good, "
                f'overrule = "{offered.reign}" under [replication] has this node go on'
            )
            await trio.sleep(_ASK_SECONDS)
    if step is Move.TAKEN:
        local.fence.note(offered.reign)
        await trio.to_thread.run_sync(local.page.sync)
        return offered.reign
    await role.note_offered(None)
    return None
