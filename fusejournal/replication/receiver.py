"""The receiver: on a mirror, takes batches from the primary into the journal, makes them durable,
acknowledges them.

One session at a time. A newer connection of the same peer takes the place of the older, which may
be a link that is dead and does not know it yet, once the two journals were compared: a peer that
cannot ship to here ends no session. A second sender is refused, and so is a second instance of the
same one (wire/instances.py) while the first is heard; but the primary takes the place of a mirror
that ships on, because what comes by way of another is not acknowledged to it. Checks come in this
order: who it is, version and volume, reign, whether another ships, position, checksum; then the
frames are appended as they are, flushed, acknowledged, and left to the applier
(receive_session.py).

A higher reign that a peer proves is on the disk before that is answered, and ends a session of a
lower one at once, also where nothing can be taken from the peer that speaks of it. One that the
followed node itself is said to have begun may be that of a copy: it counts when the instance is let
in, and then only where its journal may go on from this one.

Used from the event loop's thread."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from uuid import UUID

import trio

from fusejournal.errors import FusejournalError, JournalFailedError
from fusejournal.replication.common_ancestor import (
    ChainFinder,
    answer_chains,
    first_error,
    is_bound_by,
)
from fusejournal.replication.fence import comes_from_primary, gives_way
from fusejournal.replication.parting import Parting, forget_parting
from fusejournal.replication.receive_session import ReceiveSession, Receiving, follow_flushes
from fusejournal.replication.states import MirrorEvent, MirrorState
from fusejournal.replication.status import MirrorStatus
from fusejournal.types import Reign, Seq
from fusejournal.volume.trouble import Trouble, TroubleKind
from fusejournal.wire.frames import (
    Begin,
    Diverged,
    Hello,
    Offer,
    Welcome,
    WireError,
    uuid_of,
)
from fusejournal.wire.instances import Instance, describe_twice, instance_of
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import (
    FULL,
    Claim,
    HandshakeState,
    RefusedError,
    Sink,
    check_reign,
    claim_of,
    reign_of,
    welcome,
)
from fusejournal.wire.session_connection import SessionConnection

log = logging.getLogger(__name__)

_FRESH_SECONDS = 3.0
"""A sender that was heard so long ago at most is there: a machine takes longer to start."""
_SIGN_SECONDS = 7.0
"""A sender that sends nothing for longer, while another instance of it wants its place, has lost
it: it pings every two seconds."""
_REFUSED = {
    RefusalCode.FULL: MirrorEvent.REFUSED_FULL,
    RefusalCode.COPY: MirrorEvent.REFUSED_COPY,
}
"""The events of refusals by their codes, but for REFUSED."""
_PARTED = {
    MirrorState.DIVERGED: TroubleKind.DIVERGED,
    MirrorState.REFUSED: TroubleKind.REFUSED,
    MirrorState.NEEDS_COPY: TroubleKind.NEEDS_COPY,
}


class Receiver:
    """Receives for one mirror. *join_volume* makes one that has no journal a mirror of the volume
    that its first primary names."""

    def __init__(
        self,
        receiving: Receiving,
        me: Callable[[], HandshakeState],
        join_volume: Callable[[UUID], None],
    ) -> None:
        self._shared = receiving
        self._record = receiving.record
        self._volume = receiving.volume
        self._watermarks = receiving.watermarks
        self._fence = receiving.fence
        self._durability = receiving.durability
        self._instances = receiving.instances
        self._me = me
        self._join_volume = join_volume
        self._session: trio.CancelScope | None = None
        self._session_peer: str | None = None
        self._is_from_primary = False
        """True while that is the primary itself, and no mirror that ships on."""
        self._session_over = trio.Event()
        """The end of the newest session: each has its own."""
        self._newcomer: tuple[str, trio.CancelScope] | None = None
        """The peer that is being compared, perhaps beside a session."""
        self._sign = trio.Event()
        """Set when the sender sends something."""
        self._heeding = trio.Lock()

    @property
    def session_peer(self) -> str | None:
        """The peer that ships to here now."""
        return self._session_peer if self._session is not None else None

    @property
    def last_peer(self) -> str | None:
        """The peer that ships to here, or did last since this start; as it is called here."""
        return self._session_peer

    @property
    def heard_seconds_ago(self) -> float | None:
        """The time since the primary was heard; None where it was not since this start."""
        return self._record.heard_seconds_ago

    @property
    def told_seq(self) -> Seq:
        """The end of the primary's journal, as far as it has reported."""
        return self._record.source_head_seq

    def status(self) -> MirrorStatus:
        """Returns how receiving goes."""
        return self._record.status(self._shared.trouble()[1] or None)

    def sample(self) -> None:
        """Runs about once a second."""
        self._record.sample()

    async def run(self) -> None:
        """Have what sessions have appended applied and acknowledged, until cancelled."""
        await follow_flushes(self._shared)

    # -- sessions ----------------------------------------------------------------------------------

    async def serve(self, session: SessionConnection, greeting: Hello) -> None:
        """Serve one session, whose sender has greeted. Cancelling ends it. Raises RefusedError,
        which the sender is to hear, and WireError."""
        try:
            self._check(greeting, is_judged=False)
        except WireError as error:
            if self._session is None:
                self._refused(error)
            raise
        peer = session.peer or greeting.node
        self._check_peer(peer, greeting)
        if self._newcomer is not None:
            self._newcomer[1].cancel()
        begin: Begin | None = None
        newcomer = self._newcomer = peer, trio.CancelScope()
        try:
            with newcomer[1]:
                begin = await self._admit(session, greeting)
        except* RefusedError as group:
            if self._session is None:
                self._refused(first_error(group))
            raise
        except* (FusejournalError, OSError, trio.TooSlowError) as group:
            if self._session is None:
                self._lost(greeting.node, first_error(group))
        finally:
            if self._newcomer is newcomer:
                self._newcomer = None
                if begin is None and self._session is None:
                    self._record.disconnect()
                    self._record.note(MirrorEvent.NOT_BEGUN)
        if begin is None:
            return
        await self._take_place(peer, greeting)
        over = self._session_over = trio.Event()
        has_ended = False
        """True once it is noted why."""
        try:
            with trio.CancelScope() as self._session:
                self._session_peer = peer
                self._is_from_primary = comes_from_primary(greeting)
                try:
                    await self._serve(session, greeting, begin)
                except* RefusedError as group:
                    self._refused(first_error(group))
                    has_ended = True
                    raise
                except* (FusejournalError, OSError, trio.TooSlowError) as group:
                    self._lost(greeting.node, first_error(group))
                    has_ended = True
        finally:
            if not has_ended:
                self._record.note(MirrorEvent.ENDED)
            self._record.disconnect()
            self._session, self._is_from_primary = None, False
            over.set()

    def _check(self, greeting: Hello, *, is_judged: bool = True) -> tuple[Welcome, UUID]:
        """Returns the answer to a sender that may ship to here at all, and the volume of both.
        *is_judged*: what it claims of reigns was heard already. Raises RefusedError, WireError."""
        me = self._me()
        if not is_judged and gives_way(me, reign_of(greeting)):
            me = me._replace(fence=me.position.epoch, reign_node=0)
        answer = welcome(me, greeting, is_mirror=True)
        uuid = uuid_of(greeting.uuid)
        if uuid is None:
            raise RefusedError(RefusalCode.UNINITIALIZED, f"{greeting.node} has no volume yet")
        return answer, uuid

    async def _admit(self, session: SessionConnection, greeting: Hello) -> Begin | None:
        """Compare the peer that has greeted, beside the session that goes on; what it begins with,
        or None where the two have parted. Raises RefusedError, WireError."""
        await self.check_instance(instance_of(greeting, session.where))
        await self._heed(claim_of(greeting), session.peer or greeting.node, is_let_in=True)
        if self._session is None:
            self._record.connect(greeting.node, session.where)
        self._shared.space.check()
        answer, _ = self._check(greeting)
        await session.send(answer)
        return await self._compare(session, greeting)

    async def heed(self, claim: Claim, peer: str) -> None:
        """Hear of a reign from *peer*. When this returns, it is on the disk where it is higher than
        the one that this mirror goes by, and proven; and nothing of a lower one is taken any more.
        Cancelling leaves it undone, or done. Raises RefusedError on a full disk, OSError where the
        journal cannot be read, JournalFailedError where the flush failed."""
        await self._heed(claim, peer, is_let_in=False)

    async def _heed(self, claim: Claim, peer: str, *, is_let_in: bool) -> None:
        """Do :meth:`heed`. *is_let_in*: the instance of its node that *peer* is, was looked at."""
        async with self._heeding:  # a peer that tells of the same waits until it is on the disk
            ends = await self._ends_reign(claim, is_let_in=is_let_in)
            if ends and self._shared.raise_fence(claim.reign):
                log.warning(
                    "%s tells of reign %s: nothing of a lower is taken now", peer, claim.reign
                )
                if self._session is not None:
                    self._session.cancel()
                if self._newcomer is not None and not is_let_in:  # (else that is *peer* itself)
                    self._newcomer[1].cancel()
            await self._fence.make_durable(self._durability.flush_watermarks)

    async def _ends_reign(self, claim: Claim, *, is_let_in: bool) -> bool:
        """Returns True if *claim* is of a higher reign than this mirror goes by, and proven."""
        me, journal = self._me(), self._volume.journal
        mine = Reign(me.position.epoch, 0) if gives_way(me, claim.reign) else me.reign
        if me.uuid is None or claim.reign.epoch <= mine.epoch:
            return False
        may_be_copy = self._instances.is_of_followed(claim.reign.node_id)
        if may_be_copy and (not is_let_in or claim.seq <= journal.head_seq):
            return False
        return await is_bound_by(claim, mine, ChainFinder(journal.directory, journal.uuid))

    async def give_vote(self, reign: Reign, peer: str, instance: Instance | None = None) -> None:
        """Take nothing more of a lower reign than *reign*, which *peer*, another node of that
        *instance* or this one (None), is to begin. When this
        returns, that is on the disk, and no session goes on. Cancelling leaves the vote given, or
        not. Raises RefusedError where a higher reign, or another of the same epoch, was seen, where
        another instance of that node is followed, or on a full disk; JournalFailedError where the
        flush failed."""
        if instance is not None:
            await self.check_instance(instance)
        async with self._heeding:
            check_reign(self._me(), reign, peer)
            if self._shared.raise_fence(reign):
                log.warning(
                    "%s has the vote for reign %s: nothing of a lower is taken now", peer, reign
                )
            if self._newcomer is not None:
                self._newcomer[1].cancel()
            if self._session is not None:
                self._session.cancel()
                await self._session_over.wait()  # what is on its way into the journal is there then
            await self._fence.make_durable(self._durability.flush_watermarks)

    async def take_over(
        self, offer: Offer, peer: str, instance: Instance, commit: Callable[[], None]
    ) -> None:
        """Have this mirror begin the reign of *offer*, of the primary *peer*, that *instance* of
        it. *commit*, which blocks, writes that down: when this returns, it is done, and nothing of
        a lower reign comes in. Cancelling before leaves all as it was, but for the session; after,
        it does nothing.

        Raises RefusedError where another node has the vote or something is lacking here, and what
        *commit* raises."""
        await self.check_instance(instance)
        reign = Reign(offer.epoch, offer.reign_node)
        async with self._heeding:
            check_reign(self._me(), reign, peer)
            if self._session is not None:
                self._session.cancel()
                await self._session_over.wait()  # what is on its way into the journal is there then
            journal, applied_seq = self._volume.journal, self._volume.catalog.applied_seq
            is_equal = (journal.head.seq, journal.head.chain) == (offer.seq, offer.chain)
            if not is_equal or {journal.durable_seq, applied_seq} != {offer.seq}:
                raise RefusedError(
                    RefusalCode.HANDOFF,
                    f"entries up to {journal.durable_seq} are on the disk of {self._me().node}, "
                    f"and up to {applied_seq} applied, of {offer.seq}",
                )
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(commit)
                try:
                    self._shared.raise_fence(reign)
                    await self._fence.make_durable(self._durability.flush_watermarks)
                except (RefusedError, JournalFailedError, OSError) as error:
                    # It is in the role's record, which the next start goes by.
                    log.warning("reign %s is not in the watermarks: %s", reign, error)

    def check_needed(self, peer: str, greeting: Hello) -> None:
        """Raise RefusedError where the primary itself ships to here, and *peer* is another."""
        is_other = self._session_peer != peer and not comes_from_primary(greeting)
        if self._is_from_primary and is_other:
            raise RefusedError(
                RefusalCode.SERVED, f"already receives from {self._session_peer}, the primary"
            )

    def _check_peer(self, peer: str, greeting: Hello) -> None:
        """Raise RefusedError where another peer than *peer*, whose place this does not take, ships
        to here, or is about to."""
        self.check_needed(peer, greeting)
        if comes_from_primary(greeting) and not self._is_from_primary:
            return
        other = self._session_peer if self._session is not None else peer
        if other == peer and self._newcomer is not None:
            other = self._newcomer[0]
        if other != peer:
            raise RefusedError(RefusalCode.BUSY, f"already receives from {other}")

    async def check_instance(self, newcomer: Instance) -> None:
        """Raise RefusedError where *newcomer* is another instance of the node that is followed, and
        that is there, or was not long ago. Cancelling is harmless."""
        instances = self._instances
        if not instances.is_other(newcomer):
            return
        is_there = self._session is not None and await self._gives_a_sign()
        now, followed = trio.current_time(), instances.followed
        assert followed is not None
        if is_there or instances.is_rival(newcomer, now):
            words = describe_twice(followed, newcomer)
            if instances.met(newcomer, now):
                log.warning("%s", words)
            self._shared.wakeup.set()
            await self._keep_following()
            raise RefusedError(RefusalCode.INSTANCE, words)

    async def _keep_following(self) -> None:
        """Have on the disk which instance is followed, and which are not. Raises RefusedError on a
        full disk, OSError."""
        if self._instances.following != self._watermarks.following:
            with self._shared.space.refusing_without("the watermarks"):
                self._watermarks.write_following(self._instances.following)
            await self._durability.flush_watermarks()

    async def _gives_a_sign(self) -> bool:
        """Returns True if the sender sends something, now or soon."""
        self._sign = trio.Event()
        over = self._session_over
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await over.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            nursery.cancel_scope.deadline = trio.current_time() + _SIGN_SECONDS
            await self._sign.wait()
            nursery.cancel_scope.cancel()
        return self._sign.is_set()

    def _heard(self) -> None:
        """The sender has sent something, or is at it."""
        self._record.heard()
        self._instances.heard(trio.current_time())
        self._sign.set()

    async def _take_place(self, peer: str, greeting: Hello) -> None:
        """End the session before this one, whose place *peer* takes, and wait until it is over.
        Raises RefusedError where that goes on."""
        while self._session is not None:
            self._check_peer(peer, greeting)
            log.info("%s has connected in the place of %s", peer, self._session_peer)
            self._session.cancel()
            await self._session_over.wait()

    def _refused(self, error: BaseException) -> None:
        code = error.code if isinstance(error, RefusedError) else RefusalCode.OTHER
        self._record.note(_REFUSED.get(code, MirrorEvent.REFUSED), str(error))

    def _lost(self, node: str, error: BaseException) -> None:
        why = str(error) or type(error).__name__
        log.info("%s: %s", node, why)
        self._record.note(MirrorEvent.LOST, why)

    async def _serve(self, session: SessionConnection, greeting: Hello, begin: Begin) -> None:
        shared = self._shared
        self._record.connect(greeting.node, session.where)
        me = self._me()
        _, uuid = self._check(greeting)
        sink = Sink(me.position, *me.reign)
        sink.begin(begin)
        session.connection.expect_batches()
        if me.uuid is None:
            self._join_volume(uuid)
        # A lower reign must not come in any more, whatever happens to this machine.
        shared.raise_fence(sink.reign)
        shared.note_committed(sink)
        await self._fence.make_durable(self._durability.flush_watermarks)
        with suppress(OSError):
            await trio.to_thread.run_sync(forget_parting, self._volume.journal.directory.parent)
        self._instances.follow(instance_of(greeting, session.where), trio.current_time())
        await self._keep_following()
        self._heard()  # it has, by what it began with
        shared.applier.wake()
        self._record.begin(begin.head_seq)
        shared.wakeup.set()  # where it stands, the sender does not know
        await ReceiveSession(session, sink, shared, self._heard).run()

    async def _compare(self, session: SessionConnection, greeting: Hello) -> Begin | None:
        """Answer the sender's questions, until it begins; None when it will not."""
        journal = self._volume.journal
        chains = ChainFinder(journal.directory, journal.uuid)
        message = await answer_chains(session, chains)
        if isinstance(message, Begin):
            return message
        assert isinstance(message, Diverged)
        await self._diverged(message, session.peer or greeting.node, greeting)
        return None

    async def _diverged(self, message: Diverged, who: str, greeting: Hello) -> None:
        """The journal of peer *who* parts from this one; *message* is believed as far as it can be
        seen here: that the two agree where it says, and not in the entry after it. Raises
        WireError, JournalDamagedError."""
        journal = self._volume.journal
        head_seq, seq = journal.head_seq, message.seq
        if not seq < head_seq:
            raise WireError(f"parts at {seq}, and this journal ends with {head_seq}")
        chains = ChainFinder(journal.directory, journal.uuid)
        mine, my_next = await chains.at((seq, Seq(seq + 1)))
        if message.chain and mine is not None and message.chain != mine:
            raise WireError(f"agrees up to {seq}, and this journal has another entry there")
        if message.next_chain and message.next_chain == my_next:
            raise WireError(f"parts at {seq}, and this journal has the same entry after it")
        if self._session is not None:
            log.warning("%s is refused: its journal parts from this one after %d", who, seq)
            return
        if mine is not None:
            reign = reign_of(greeting)
            parting = Parting(who, greeting.node, reign, seq, mine, greeting.seq)
            with suppress(OSError):  # a full disk: a rejoin has to ask, or to wait for more space
                parting.keep(journal.directory.parent)
        self._record.note(
            MirrorEvent.PARTED,
            f"{who} has not the entries from {seq + 1} on that are here: nothing is taken from it; "
            "once this is unmounted, 'fusejournal rejoin' keeps them as a branch and brings this "
            "mirror level ('--dry-run' says what that would do)",
        )

    def degraded(self) -> Iterator[Trouble]:
        """Yields what is wrong here, but for a volume that has failed, which says so."""
        record = self._record
        if (kind := _PARTED.get(record.state)) is not None:
            words = f"primary {record.primary}: {record.state}: {record.last_error}"
            yield Trouble(kind, words, record.primary)
        elif (silence := record.silence()) is not None:
            yield Trouble(TroubleKind.PRIMARY_AWAY, silence)
        state, detail = self._shared.trouble()
        if state == FULL:
            yield Trouble(TroubleKind.NO_SPACE, f"takes nothing more for now: {detail}")
        if (twice := self._instances.describe(trio.current_time())) is not None:
            yield Trouble(TroubleKind.RUNS_TWICE, twice)

    def twice(self, greeting: Hello, where: str) -> str:
        """Returns, in words, that another instance of the node that begins with *greeting* ships to
        here now, or that this is a further start of one that was refused; empty where neither is
        so."""
        instances, now = self._instances, trio.current_time()
        newcomer, followed = instance_of(greeting, where), instances.followed
        if followed is not None and instances.is_rival(newcomer, now):
            # It may end before it ships, and its next start tells of this one alone.
            instances.met(newcomer, now)
            with suppress(OSError):  # a full disk: until this process ends
                self._watermarks.write_following(instances.following)
            return describe_twice(followed, newcomer)
        if self._session is None or followed is None or not instances.is_other(newcomer):
            return ""
        heard_seconds_ago = self._record.heard_seconds_ago
        if heard_seconds_ago is None or heard_seconds_ago > _FRESH_SECONDS:
            return ""
        return describe_twice(followed, newcomer)
